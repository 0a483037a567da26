package main

import (
	"encoding/json"
	"slices"
	"sort"
)

type kind string

const (
	namespaces kind = "namespaces"
	pods       kind = "pods"
	policies   kind = "networkpolicies"
)

// What came of a kind: everything, or one object that changed or is gone.
type news struct {
	kind           kind
	all            []object
	isList, isGone bool
}

// What is looked at of a Namespace, Pod or NetworkPolicy.
type object struct {
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
	IPBlock                        *ipBlock
}

type ipBlock struct {
	CIDR   string
	Except []string
}

type port struct {
	Protocol string
	Port     json.RawMessage
	EndPort  int
}

// Everything there is, by kind and by `namespace/name`. A kind that was not listed yet is not there.
type world map[kind]map[string]object

func (o object) key() string { return o.Metadata.Namespace + "/" + o.Metadata.Name }

func (w world) take(next news) {
	if next.isList {
		w[next.kind] = map[string]object{}
	}
	for _, object := range next.all {
		if next.isGone {
			delete(w[next.kind], object.key())
		} else {
			w[next.kind][object.key()] = object
		}
	}
}

// In order, so that the same world makes the same rules.
func (w world) of(kind kind) []object {
	var found []object
	for _, object := range w[kind] {
		found = append(found, object)
	}
	sort.Slice(found, func(a, b int) bool { return found[a].key() < found[b].key() })
	return found
}

// Pods that have an address of their own.
func (w world) pods() []object {
	return slices.DeleteFunc(w.of(pods), func(pod object) bool {
		over := pod.Status.Phase == "Succeeded" || pod.Status.Phase == "Failed"
		return pod.Spec.HostNetwork || pod.Status.PodIP == "" || over
	})
}

// Pods that a peer of a policy of that namespace stands for.
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
		return !peer.NamespaceSelector.matches(w[namespaces]["/"+pod.Metadata.Namespace].Metadata.Labels)
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
