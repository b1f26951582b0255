package deploy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/lease/kube/testkube"
)

// TestManifestsAreAccepted has the API server check every overlay, and the pod that the daemon set would make, which meets
// checks (pod security, priority class, service account) that the daemon set itself does not.
func TestManifestsAreAccepted(t *testing.T) {
	c := startAPI(t, netip.MustParseAddr("127.0.0.1"))
	for _, overlay := range overlays() {
		manifests := kustomize(t, "kubernetes/overlays/"+overlay)
		apply(t, c, manifests, true)
		apply(t, c, manifests, false)
		d := daemonSet(t, manifests)
		pod, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "weft-x", "namespace": d.Namespace, "labels": d.Spec.Template.Labels},
			"spec": d.Spec.Template.Spec,
		})
		if err != nil {
			t.Fatal(err)
		}
		o := split(t, pod)[0]
		if err := c.Apply(t.Context(), o.path(t), pod, true); err != nil {
			t.Errorf("%s: the daemon set's pod: %v", overlay, err)
		}
	}
	// The checks are real ones.
	broken := strings.Replace(string(kustomize(t, "kubernetes/overlays/udp")), "hostNetwork: true", "hostNetwerk: true", 1)
	for _, o := range split(t, []byte(broken)) {
		if o.Kind == "DaemonSet" {
			if err := c.Apply(t.Context(), o.path(t), o.text, true); err == nil {
				t.Error("an unknown field was accepted")
			}
		}
	}
}

// rule is one line of what an account may do.
type rule struct{ Verbs, APIGroups, Resources, ResourceNames []string }

// rulesOf asks the API server what an account may do.
func rulesOf(t *testing.T, c *testkube.Cluster, token string) []string {
	t.Helper()
	status, b, err := c.Do(t.Context(), testkube.Request{
		Method: http.MethodPost, Path: "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", Token: token,
		Body: map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": map[string]any{"namespace": "default"}},
	})
	if err != nil || status != http.StatusCreated {
		t.Fatalf("status %d, %v: %s", status, err, b)
	}
	var answer struct {
		Status struct{ ResourceRules []rule }
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range answer.Status.ResourceRules {
		lines = append(lines, fmt.Sprint(r))
	}
	slices.Sort(lines)
	return lines
}

// TestServiceAccountMayDoNoMore compares all that the manifest's account may do with what an account without any binding
// may, and tries some of it.
func TestServiceAccountMayDoNoMore(t *testing.T) {
	c := startAPI(t, netip.MustParseAddr("127.0.0.1"))
	manifests := kustomize(t, "kubernetes/overlays/udp")
	apply(t, c, manifests, false)
	d := daemonSet(t, manifests)
	nobody := object{}
	for _, o := range split(t, []byte("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: nobody, namespace: "+d.Namespace+"}")) {
		nobody = o
	}
	if err := c.Apply(t.Context(), nobody.path(t), nobody.text, false); err != nil {
		t.Fatal(err)
	}
	token := func(account string) string {
		s, err := c.Token(t.Context(), d.Namespace, account)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	weft := token(d.Spec.Template.Spec.ServiceAccountName)
	without := rulesOf(t, c, token("nobody"))
	var more []string
	for _, line := range rulesOf(t, c, weft) {
		if !slices.Contains(without, line) {
			more = append(more, line)
		}
	}
	want := []string{fmt.Sprint(rule{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"nodes"}}),
		fmt.Sprint(rule{Verbs: []string{"patch"}, APIGroups: []string{""}, Resources: []string{"nodes/status"}})}
	if !slices.Equal(more, want) {
		t.Errorf("the account may do\n%s\nwant\n%s", strings.Join(more, "\n"), strings.Join(want, "\n"))
	}
	if err := c.AddNode(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	patch := map[string]any{"metadata": map[string]any{"annotations": map[string]any{"a.b/c": "d"}}}
	for _, try := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/api/v1/nodes", 200},
		{http.MethodGet, "/api/v1/nodes/n", 200},
		{http.MethodPatch, "/api/v1/nodes/n/status", 200},
		{http.MethodPatch, "/api/v1/nodes/n", 403},
		{http.MethodDelete, "/api/v1/nodes/n", 403},
		{http.MethodGet, "/api/v1/pods", 403},
		{http.MethodGet, "/api/v1/namespaces/" + d.Namespace + "/configmaps/weft-cfg", 403},
		{http.MethodGet, "/api/v1/secrets", 403},
	} {
		r := testkube.Request{Method: try.method, Path: try.path, Token: weft}
		if try.method == http.MethodPatch {
			r.Body, r.ContentType = patch, "application/strategic-merge-patch+json"
		}
		if status, b, err := c.Do(t.Context(), r); err != nil || status != try.want {
			t.Errorf("%s %s: %d, %v, want %d: %s", try.method, try.path, status, err, try.want, b)
		}
	}
}
