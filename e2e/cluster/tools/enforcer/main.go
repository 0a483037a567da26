// Enforcer makes NetworkPolicies of a one-node test cluster real: it follows policies, pods and namespaces through
// `kubectl get --watch` and writes one nft table, whole, whenever they change. Test equipment: IPv4, TCP and UDP only.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	// Changes that come within this time are one.
	pause = 20 * time.Millisecond
	// What there is at the start comes one by one, and no rules are written from half of it.
	start = time.Second
)

func main() {
	kubectl := flag.String("kubectl", "kubectl", "the kubectl to ask with")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	table := flag.String("table", "belay-policies", "the nft table that is written")
	printOnly := flag.Bool("print", false, "print the rules for the List on stdin, and end")
	flag.Parse()
	if *printOnly {
		if err := printRules(*table); err != nil {
			log.Fatal(err)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for ctx.Err() == nil {
		// The API server ends every watch after a while. What was missed meanwhile is not known: all is listed anew.
		if err := enforce(ctx, *kubectl, *kubeconfig, *table); err != nil && ctx.Err() == nil {
			log.Print(err)
			time.Sleep(start)
		}
	}
}

func enforce(ctx context.Context, kubectl, kubeconfig, table string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	changes := make(chan change)
	ended := make(chan error, 3)
	for _, kind := range []string{"namespaces", "pods", "networkpolicies"} {
		go func() { ended <- follow(ctx, kubectl, kubeconfig, kind, changes) }()
	}
	world, written := world{}, ""
	settle(world, changes, start)
	for {
		if rules := world.rules(table); rules != written {
			if err := write(rules); err != nil {
				return fmt.Errorf("%w in:\n%s", err, rules)
			}
			written = rules
		}
		select {
		case change := <-changes:
			world.take(change)
			settle(world, changes, pause)
		case err := <-ended:
			return err
		}
	}
}

func settle(world world, changes <-chan change, within time.Duration) {
	quiet := time.NewTimer(within)
	for {
		select {
		case change := <-changes:
			world.take(change)
		case <-quiet.C:
			return
		}
	}
}

func follow(ctx context.Context, kubectl, kubeconfig, kind string, changes chan<- change) error {
	command := exec.CommandContext(ctx, kubectl, "--kubeconfig", kubeconfig, "get", kind, "--all-namespaces", "--watch",
		"--output-watch-events", "-o", "json")
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	defer command.Wait()
	decoder := json.NewDecoder(out)
	for {
		var next change
		if err := decoder.Decode(&next); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		select {
		case changes <- next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func write(rules string) error {
	command := exec.Command("nft", "-f", "-")
	command.Stdin = strings.NewReader(rules)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

func printRules(table string) error {
	var list struct{ Items []object }
	if err := json.NewDecoder(os.Stdin).Decode(&list); err != nil {
		return err
	}
	world := world{}
	for _, item := range list.Items {
		world.take(change{Type: "ADDED", Object: item})
	}
	fmt.Print(world.rules(table))
	return nil
}
