package testkube

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// Node holds the fields of a Node object that the tests use.
type Node struct {
	APIVersion string   `json:"apiVersion,omitempty"`
	Kind       string   `json:"kind,omitempty"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
	Status     Status   `json:"status"`
}

// Metadata is the metadata of an object.
type Metadata struct {
	Name        string            `json:"name"`
	UID         string            `json:"uid,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Spec is the spec of a Node.
type Spec struct {
	PodCIDR  string   `json:"podCIDR,omitempty"`
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// Status is the status of a Node.
type Status struct {
	Conditions []Condition `json:"conditions,omitempty"`
	Images     []Image     `json:"images,omitempty"`
}

// Image is a container image on a node. Images make up most of the size of a Node.
type Image struct {
	Names     []string `json:"names"`
	SizeBytes int64    `json:"sizeBytes"`
}

// Condition is a condition of a Node.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             string    `json:"reason"`
	Message            string    `json:"message"`
	LastTransitionTime time.Time `json:"lastTransitionTime"`
}

const nodes = "/api/v1/nodes"

// kubeletImages is the maximum number of images that a kubelet lists (--node-status-max-images).
const kubeletImages = 50

// AddNode creates a Node with the given pod CIDRs, if any.
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

// Annotate sets annotations of a Node. A nil value removes one.
func (c *Cluster) Annotate(ctx context.Context, name string, annotations map[string]any) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": annotations}}
	return c.DoJSON(ctx, Request{
		Method: http.MethodPatch, Path: nodes + "/" + name,
		ContentType: "application/merge-patch+json", Body: patch,
	}, nil)
}

// Condition returns the condition of the given type.
func (n Node) Condition(typ string) (Condition, bool) {
	for _, c := range n.Status.Conditions {
		if c.Type == typ {
			return c, true
		}
	}
	return Condition{}, false
}

// AddLease creates a Node that publishes a lease like a daemon with the udp backend. overrides adds
// or replaces annotations; their names are without the prefix flannel.alpha.coreos.com/. The Node
// lists as many images as a kubelet would.
func (c *Cluster) AddLease(
	ctx context.Context, name, podCIDR, publicIP string, overrides map[string]string,
) error {
	n := Node{
		APIVersion: "v1", Kind: "Node", Metadata: Metadata{Name: name},
		Spec: Spec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}},
	}
	for i := range kubeletImages {
		digest := fmt.Sprintf("registry.example.com/team/application-%d@sha256:%064d", i, i)
		names := []string{digest, "registry.example.com/team/application:v1"}
		n.Status.Images = append(n.Status.Images, Image{Names: names, SizeBytes: 1 << 28})
	}
	n.Metadata.Annotations = map[string]string{}
	annotations := map[string]string{
		"backend-type": "", "backend-data": "null", "public-ip": publicIP,
		"kube-subnet-manager": "true",
	}
	maps.Copy(annotations, overrides)
	for annotation, text := range annotations {
		n.Metadata.Annotations["flannel.alpha.coreos.com/"+annotation] = text
	}
	return c.DoJSON(ctx, Request{Method: http.MethodPost, Path: nodes, Body: n}, nil)
}
