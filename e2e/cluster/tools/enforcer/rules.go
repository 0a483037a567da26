package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// One event of a watch.
type change struct {
	Type   string
	Object object
}

// What is looked at of a Namespace, Pod or NetworkPolicy.
type object struct {
	Kind     string
	Metadata struct {
		Namespace, Name string
		Labels          map[string]string
	}
	Spec struct {
		HostNetwork bool
		Containers  []struct{ Ports []containerPort }
		PodSelector selector
		PolicyTypes []string
		Ingress     []rule
		Egress      []rule
	}
	Status struct {
		Phase string
		PodIP string
	}
}

type containerPort struct {
	Name          string
	ContainerPort int
	Protocol      string
}

type selector struct {
	MatchLabels      map[string]string
	MatchExpressions []struct {
		Key, Operator string
		Values        []string
	}
}

type rule struct {
	From, To []peer
	Ports    []port
}

type peer struct {
	PodSelector, NamespaceSelector *selector
	IPBlock                        *struct {
		CIDR   string
		Except []string
	}
}

type port struct {
	Protocol string
	Port     json.RawMessage
	EndPort  int
}

// Everything there is, by kind, namespace and name.
type world map[string]object

func (w world) take(c change) {
	key := strings.Join([]string{c.Object.Kind, c.Object.Metadata.Namespace, c.Object.Metadata.Name}, "/")
	if c.Type == "DELETED" {
		delete(w, key)
	} else {
		w[key] = c.Object
	}
}

func (w world) of(kind string) []object {
	var found []object
	for _, object := range w {
		if object.Kind == kind {
			found = append(found, object)
		}
	}
	sort.Slice(found, func(a, b int) bool {
		one, other := found[a].Metadata, found[b].Metadata
		return one.Namespace+"/"+one.Name < other.Namespace+"/"+other.Name
	})
	return found
}

// Pods that have an address of their own.
func (w world) pods() []object {
	return slices.DeleteFunc(w.of("Pod"), func(pod object) bool {
		over := pod.Status.Phase == "Succeeded" || pod.Status.Phase == "Failed"
		return pod.Spec.HostNetwork || pod.Status.PodIP == "" || over
	})
}

func (s selector) matches(labels map[string]string) bool {
	for name, value := range s.MatchLabels {
		if labels[name] != value {
			return false
		}
	}
	for _, expression := range s.MatchExpressions {
		value, there := labels[expression.Key]
		listed := slices.Contains(expression.Values, value)
		holds := map[string]bool{
			"Exists": there, "DoesNotExist": !there, "In": there && listed, "NotIn": !there || !listed,
		}[expression.Operator]
		if !holds {
			return false
		}
	}
	return true
}

// The whole table, which replaces the one before. A packet has to pass what its sender may send and what its receiver
// may receive; answers pass.
func (w world) rules(table string) string {
	var chains, out, in strings.Builder
	for n, pod := range w.pods() {
		egress, ingress := w.policies(pod, "Egress"), w.policies(pod, "Ingress")
		if len(egress) > 0 {
			fmt.Fprintf(&chains, "  chain out_%d {\n%s    drop\n  }\n", n, w.egress(egress))
			fmt.Fprintf(&out, "    ip saddr %s jump out_%d\n", pod.Status.PodIP, n)
		}
		if len(ingress) > 0 {
			fmt.Fprintf(&chains, "  chain in_%d {\n%s    drop\n  }\n", n, w.ingress(pod, ingress))
			fmt.Fprintf(&in, "    ip daddr %s jump in_%d\n", pod.Status.PodIP, n)
		}
	}
	const answers = "    ct state established,related accept\n"
	return fmt.Sprintf("table ip %[1]s\ndelete table ip %[1]s\ntable ip %[1]s {\n%[2]s"+
		"  chain forwarded {\n    type filter hook forward priority -5; policy accept;\n%[5]s%[3]s%[4]s  }\n"+
		"  chain to_node {\n    type filter hook input priority -5; policy accept;\n%[5]s%[3]s  }\n}\n",
		table, chains.String(), out.String(), in.String(), answers)
}

func (w world) policies(pod object, kind string) []object {
	return slices.DeleteFunc(w.of("NetworkPolicy"), func(policy object) bool {
		here := policy.Metadata.Namespace == pod.Metadata.Namespace
		return !here || !slices.Contains(policy.Spec.PolicyTypes, kind) || !policy.Spec.PodSelector.matches(pod.Metadata.Labels)
	})
}

func (w world) egress(policies []object) string {
	var lines strings.Builder
	for _, policy := range policies {
		for _, rule := range policy.Spec.Egress {
			if len(rule.To) == 0 {
				lines.WriteString(allow("", rule.Ports, nil))
			}
			for _, peer := range rule.To {
				if peer.IPBlock != nil {
					lines.WriteString(block("daddr", peer, rule.Ports))
				}
				for _, pod := range w.selected(policy.Metadata.Namespace, peer) {
					lines.WriteString(allow("ip daddr "+pod.Status.PodIP, rule.Ports, &pod))
				}
			}
		}
	}
	return lines.String()
}

func (w world) ingress(pod object, policies []object) string {
	var lines strings.Builder
	for _, policy := range policies {
		for _, rule := range policy.Spec.Ingress {
			if len(rule.From) == 0 {
				lines.WriteString(allow("", rule.Ports, &pod))
			}
			for _, peer := range rule.From {
				if peer.IPBlock != nil {
					lines.WriteString(block("saddr", peer, rule.Ports))
				}
				for _, from := range w.selected(policy.Metadata.Namespace, peer) {
					lines.WriteString(allow("ip saddr "+from.Status.PodIP, rule.Ports, &pod))
				}
			}
		}
	}
	return lines.String()
}

func (w world) selected(namespace string, peer peer) []object {
	if peer.PodSelector == nil && peer.NamespaceSelector == nil {
		return nil
	}
	return slices.DeleteFunc(w.pods(), func(pod object) bool {
		if peer.PodSelector != nil && !peer.PodSelector.matches(pod.Metadata.Labels) {
			return true
		}
		if peer.NamespaceSelector == nil {
			return pod.Metadata.Namespace != namespace
		}
		return !peer.NamespaceSelector.matches(w["Namespace//"+pod.Metadata.Namespace].Metadata.Labels)
	})
}

func block(side string, peer peer, ports []port) string {
	if strings.Contains(peer.IPBlock.CIDR, ":") {
		return ""
	}
	match := ""
	if peer.IPBlock.CIDR != "0.0.0.0/0" {
		match = fmt.Sprintf("ip %s %s", side, peer.IPBlock.CIDR)
	}
	if except := peer.IPBlock.Except; len(except) > 0 {
		match += fmt.Sprintf(" ip %s != { %s }", side, strings.Join(except, ", "))
	}
	return allow(match, ports, nil)
}

// A line for each port; receiver says what names of ports mean.
func allow(match string, ports []port, receiver *object) string {
	if len(ports) == 0 {
		return line(match, "")
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
	return "    " + strings.Join(strings.Fields(strings.Join(append(matches, "return"), " ")), " ") + "\n"
}
