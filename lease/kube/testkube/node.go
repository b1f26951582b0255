package testkube

import (
	"context"
	"fmt"
	"maps"
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
	Images     []Image     `json:"images,omitempty"`
}

// Image is one that a kubelet has; most of a Node's size is due to them.
type Image struct {
	Names     []string `json:"names"`
	SizeBytes int64    `json:"sizeBytes"`
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

// kubeletImages is how many images a kubelet lists at most (--node-status-max-images).
const kubeletImages = 50

// AddNode creates a Node with these pod CIDRs, or none.
func (c *Cluster) AddNode(ctx context.Context, name string, podCIDRs ...string) error {
	n := Node{APIVersion: "v1", Kind: "Node", Metadata: Metadata{Name: name}}
	if len(podCIDRs) > 0 {
		n.Spec = Spec{PodCIDR: podCIDRs[0], PodCIDRs: podCIDRs}
	}
	return c.DoJSON(ctx, Request{Method: http.MethodPost, Path: nodes, Body: n}, nil)
}

// DeleteNode deletes a Node.
func (c *Cluster) DeleteNode(ctx context.Context, name string) error {
	return c.DoJSON(ctx, Request{Method: http.MethodDelete, Path: nodes + "/" + name}, nil)
}

// Node reads a Node.
func (c *Cluster) Node(ctx context.Context, name string) (Node, error) {
	var n Node
	err := c.DoJSON(ctx, Request{Method: http.MethodGet, Path: nodes + "/" + name}, &n)
	return n, err
}

// Annotate sets annotations of a Node; nil removes one.
func (c *Cluster) Annotate(ctx context.Context, name string, annotations map[string]any) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": annotations}}
	return c.DoJSON(ctx, Request{
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

// AddLease creates a Node that publishes a lease as a daemon of the udp backend does, or with more and other annotations.
// Their names are given without the prefix flannel.alpha.coreos.com/. The Node lists as many images as a kubelet would.
func (c *Cluster) AddLease(ctx context.Context, name, podCIDR, publicIP string, more map[string]string) error {
	n := Node{APIVersion: "v1", Kind: "Node", Metadata: Metadata{Name: name}, Spec: Spec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}}}
	for i := range kubeletImages {
		digest := fmt.Sprintf("registry.example.com/team/application-%d@sha256:%064d", i, i)
		n.Status.Images = append(n.Status.Images, Image{Names: []string{digest, "registry.example.com/team/application:v1"}, SizeBytes: 1 << 28})
	}
	n.Metadata.Annotations = map[string]string{}
	said := map[string]string{"backend-type": "", "backend-data": "null", "public-ip": publicIP, "kube-subnet-manager": "true"}
	maps.Copy(said, more)
	for annotation, text := range said {
		n.Metadata.Annotations["flannel.alpha.coreos.com/"+annotation] = text
	}
	return c.DoJSON(ctx, Request{Method: http.MethodPost, Path: nodes, Body: n}, nil)
}
