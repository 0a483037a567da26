package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// While the namespace kube-system has this label, nothing is enforced: so that tests see a network like that too.
const offLabel = "belay.dev/test-network-open"

// One way of a packet, seen from the pod whose policies are asked.
type way struct {
	// As `policyTypes` spells it.
	kind string
	// Which of a packet's addresses is the pod's, and which the peer's.
	own, other string
	rules      func(policy object) []rule
	// Whose names of ports are meant: the receiver's. Nil where no pod is known.
	receiver func(pod object, peer *object) *object
}

var (
	egress = way{
		kind: "Egress", own: "saddr", other: "daddr",
		rules:    func(policy object) []rule { return policy.Spec.Egress },
		receiver: func(_ object, peer *object) *object { return peer },
	}
	ingress = way{
		kind: "Ingress", own: "daddr", other: "saddr",
		rules:    func(policy object) []rule { return policy.Spec.Ingress },
		receiver: func(pod object, _ *object) *object { return &pod },
	}
)

// The whole table, which replaces the one before. A packet has to pass what its sender may send and what its receiver
// may receive; answers pass. The hooks come after the addresses of Services were replaced by those of pods.
func (w world) table(name string) string {
	outChains, out := w.chains(egress)
	inChains, in := w.chains(ingress)
	const answers = "    ct state established,related accept\n"
	return fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\ntable ip %[1]s {\n%[2]s%[3]s"+
		"  chain forwarded {\n    type filter hook forward priority -5; policy accept;\n%[6]s%[4]s%[5]s  }\n"+
		"  chain to_node {\n    type filter hook input priority -5; policy accept;\n%[6]s%[4]s  }\n}\n",
		name, outChains, inChains, out, in, answers)
}

// A chain for each pod that a policy selects, and the lines that lead there. What a chain lets pass goes back; what it
// drops is counted, with the pod's name.
func (w world) chains(way way) (string, string) {
	var chains, jumps strings.Builder
	if _, off := w[namespaces]["/kube-system"].Metadata.Labels[offLabel]; off {
		return "", ""
	}
	for n, pod := range w.pods() {
		policies := w.policies(pod, way)
		if len(policies) == 0 {
			continue
		}
		chain := fmt.Sprintf("%s_%d", strings.ToLower(way.kind), n)
		comment := pod.key()[:min(len(pod.key()), 120)]
		fmt.Fprintf(&chains, "  chain %s {\n%s    counter drop comment \"%s\"\n  }\n", chain, w.allowed(pod, policies, way), comment)
		fmt.Fprintf(&jumps, "    ip %s %s jump %s\n", way.own, pod.Status.PodIP, chain)
	}
	return chains.String(), jumps.String()
}

func (w world) policies(pod object, way way) []object {
	return slices.DeleteFunc(w.of(policies), func(policy object) bool {
		here := policy.Metadata.Namespace == pod.Metadata.Namespace
		return !here || !slices.Contains(policy.Spec.PolicyTypes, way.kind) || !policy.Spec.PodSelector.matches(pod.Metadata.Labels)
	})
}

func (w world) allowed(pod object, policies []object, way way) string {
	var lines strings.Builder
	for _, policy := range policies {
		for _, rule := range way.rules(policy) {
			peers := slices.Concat(rule.From, rule.To)
			if len(peers) == 0 {
				lines.WriteString(allow("", rule.Ports, way.receiver(pod, nil)))
			}
			for _, peer := range peers {
				// One of IPv6 has no packets here.
				if block := peer.IPBlock; block != nil && !strings.Contains(block.CIDR, ":") {
					lines.WriteString(allow(block.match(way.other), rule.Ports, way.receiver(pod, nil)))
				}
				for _, other := range w.selected(policy.Metadata.Namespace, peer) {
					match := fmt.Sprintf("ip %s %s", way.other, other.Status.PodIP)
					lines.WriteString(allow(match, rule.Ports, way.receiver(pod, &other)))
				}
			}
		}
	}
	return lines.String()
}

func (b ipBlock) match(side string) string {
	match := ""
	if b.CIDR != "0.0.0.0/0" {
		match = fmt.Sprintf("ip %s %s", side, b.CIDR)
	}
	if len(b.Except) > 0 {
		match += fmt.Sprintf(" ip %s != { %s }", side, strings.Join(b.Except, ", "))
	}
	return match
}

// A line for each port; receiver says what names of ports mean.
func allow(match string, ports []port, receiver *object) string {
	if len(ports) == 0 {
		return line(match)
	}
	lines := ""
	for _, port := range ports {
		protocol := strings.ToLower(port.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		var name string
		switch {
		case len(port.Port) == 0:
			lines += line(match, "meta l4proto "+protocol)
		case json.Unmarshal(port.Port, &name) == nil:
			for _, number := range named(receiver, name) {
				lines += line(match, fmt.Sprintf("%s dport %d", protocol, number))
			}
		case port.EndPort > 0:
			lines += line(match, fmt.Sprintf("%s dport %s-%d", protocol, port.Port, port.EndPort))
		default:
			lines += line(match, fmt.Sprintf("%s dport %s", protocol, port.Port))
		}
	}
	return lines
}

func named(pod *object, name string) []int {
	var numbers []int
	if pod == nil {
		return nil
	}
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == name {
				numbers = append(numbers, port.ContainerPort)
			}
		}
	}
	return numbers
}

func line(matches ...string) string {
	return "    " + strings.Join(strings.Fields(strings.Join(append(matches, "counter return"), " ")), " ") + "\n"
}
