package kubebox

import (
	"context"
	"net/http"
	"time"
)

// Node is what tests look at in a Node object, and what they create.
type Node struct {
	APIVersion string   `json:"apiVersion,omitempty"`
	Kind       string   `json:"kind,omitempty"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
	Status     Status   `json:"status"`
}

// Metadata is an object's.
type Metadata struct {
	Name        string            `json:"name"`
	UID         string            `json:"uid,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Spec is a Node's.
type Spec struct {
	PodCIDR  string   `json:"podCIDR,omitempty"`
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// Status is a Node's.
type Status struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Condition is one of a Node's.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

const nodes = "/api/v1/nodes"

// AddNode creates a Node with these pod CIDRs, or none.
func (c *Cluster) AddNode(ctx context.Context, name string, podCIDRs ...string) error {
	n := Node{APIVersion: "v1", Kind: "Node", Metadata: Metadata{Name: name}}
	if len(podCIDRs) > 0 {
		n.Spec = Spec{PodCIDR: podCIDRs[0], PodCIDRs: podCIDRs}
	}
	return c.Must(ctx, Request{Method: http.MethodPost, Path: nodes, Body: n}, nil)
}

// DeleteNode deletes a Node.
func (c *Cluster) DeleteNode(ctx context.Context, name string) error {
	return c.Must(ctx, Request{Method: http.MethodDelete, Path: nodes + "/" + name}, nil)
}

// Node reads a Node.
func (c *Cluster) Node(ctx context.Context, name string) (Node, error) {
	var n Node
	err := c.Must(ctx, Request{Method: http.MethodGet, Path: nodes + "/" + name}, &n)
	return n, err
}

// Annotate sets annotations of a Node; nil removes one.
func (c *Cluster) Annotate(ctx context.Context, name string, annotations map[string]any) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": annotations}}
	return c.Must(ctx, Request{
		Method: http.MethodPatch, Path: nodes + "/" + name, ContentType: "application/merge-patch+json", Body: patch,
	}, nil)
}

// Condition finds one of a Node's conditions.
func (n Node) Condition(typ string) (Condition, bool) {
	for _, c := range n.Status.Conditions {
		if c.Type == typ {
			return c, true
		}
	}
	return Condition{}, false
}
