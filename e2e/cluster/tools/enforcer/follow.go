package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"time"
)

// How long to wait for an API server that does not answer.
const again = time.Second

// What is followed, and where it is.
var paths = map[kind]string{
	namespaces: "/api/v1/namespaces",
	pods:       "/api/v1/pods",
	policies:   "/apis/networking.k8s.io/v1/networkpolicies",
}

type apiServer struct {
	kubectl, kubeconfig string
}

// Tells of everything of a kind, then of each change, and after every gap of everything anew, until the context ends.
func (s apiServer) follow(ctx context.Context, kind kind, path string, news chan<- news) {
	for ctx.Err() == nil {
		if err := s.listAndWatch(ctx, kind, path, news); err != nil && ctx.Err() == nil {
			log.Printf("%s: %v", kind, err)
			select {
			case <-time.After(again):
			case <-ctx.Done():
			}
		}
	}
}

// Ends without an error when the watch does: the API server ends every one after a while.
func (s apiServer) listAndWatch(ctx context.Context, kind kind, path string, told chan<- news) error {
	tell := func(next news) {
		select {
		case told <- next:
		case <-ctx.Done():
		}
	}
	var list struct {
		Metadata struct{ ResourceVersion string }
		Items    []object
	}
	answer, err := s.get(ctx, path).Output()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		return err
	}
	tell(news{kind: kind, all: list.Items, isList: true})

	watch := s.get(ctx, path+"?watch=true&resourceVersion="+list.Metadata.ResourceVersion)
	out, err := watch.StdoutPipe()
	if err != nil {
		return err
	}
	if err := watch.Start(); err != nil {
		return err
	}
	defer watch.Wait()
	for decoder := json.NewDecoder(out); ; {
		var change struct {
			Type   string
			Object object
		}
		if err := decoder.Decode(&change); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if change.Type == "ERROR" {
			return fmt.Errorf("the watch ended with an error")
		}
		tell(news{kind: kind, all: []object{change.Object}, isGone: change.Type == "DELETED"})
	}
}

func (s apiServer) get(ctx context.Context, path string) *exec.Cmd {
	command := exec.CommandContext(ctx, s.kubectl, "--kubeconfig", s.kubeconfig, "get", "--raw", path)
	command.Stderr = os.Stderr
	return command
}
