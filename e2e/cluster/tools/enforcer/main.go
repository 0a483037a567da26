// Enforcer makes NetworkPolicies of a one-node test cluster real: it follows policies, pods and namespaces through
// kubectl and writes one nft table, whole, whenever they change. Test equipment: IPv4, TCP and UDP only.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Changes that come within this time are one.
const settled = 20 * time.Millisecond

func main() {
	var server apiServer
	flag.StringVar(&server.kubectl, "kubectl", "kubectl", "the kubectl to ask with")
	flag.StringVar(&server.kubeconfig, "kubeconfig", "", "how to reach the API server")
	table := flag.String("table", "belay-policies", "the nft table that is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	news := make(chan news)
	var followers sync.WaitGroup
	for kind, path := range paths {
		followers.Go(func() { server.follow(ctx, kind, path, news) })
	}
	enforce(ctx, *table, news)
	followers.Wait()
}

// Until the context ends. What is not known whole is not acted on: the rules that there are stay.
func enforce(ctx context.Context, table string, news <-chan news) {
	world, written := world{}, ""
	for {
		select {
		case next := <-news:
			world.take(next)
		case <-ctx.Done():
			return
		}
		settle(ctx, world, news)
		if len(world) < len(paths) {
			continue
		}
		rules := world.table(table)
		if rules == written {
			continue
		}
		if err := write(rules); err != nil {
			log.Printf("%v in:\n%s", err, rules)
			continue
		}
		written = rules
	}
}

func settle(ctx context.Context, world world, news <-chan news) {
	over := time.After(settled)
	for {
		select {
		case next := <-news:
			world.take(next)
		case <-over:
			return
		case <-ctx.Done():
			return
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
