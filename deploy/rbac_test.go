package deploy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"weft/lease/kube/testkube"
)

// TestManifestsValid has the API server validate every overlay, the chart, and the pods of their
// DaemonSets. The
// pod passes admission checks (pod security, priority class, service account) that the DaemonSet
// does not.
func TestManifestsValid(t *testing.T) {
	c := startControlPlane(t, netip.MustParseAddr("127.0.0.1"))
	sets := map[string][]byte{}
	for _, overlay := range append(overlays(), "wireguard", "ipip", "dual-stack", "nftables", "k3s", "canal", "fast-path") {
		sets[overlay] = kustomize(t, "kubernetes/overlays/"+overlay)
	}
	if os.Getenv(helmEnv) != "" {
		sets["chart"], sets["chart with policies"] = renderChart(t), renderChart(t, "netpol.enabled=true,flannel.backend=udp")
	}
	apply(t, c, sets["vxlan"], false) // helm leaves the namespace to its user
	for name, manifests := range sets {
		apply(t, c, manifests, true)
		apply(t, c, manifests, false)
		d := daemonSet(t, manifests)
		pod, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod",
			"metadata": map[string]any{"name": "weft-x", "namespace": d.Namespace, "labels": d.Spec.Template.Labels},
			"spec":     d.Spec.Template.Spec,
		})
		if err != nil {
			t.Fatal(err)
		}
		o := parseManifests(t, pod)[0]
		if err := c.Apply(t.Context(), o.apiPath(t), pod, true); err != nil {
			t.Errorf("%s: pod of the DaemonSet: %v", name, err)
		}
	}
	// Prove that the validation is strict.
	broken := strings.Replace(string(kustomize(t, "kubernetes/overlays/udp")), "hostNetwork: true", "hostNetwerk: true",
		1)
	for _, o := range parseManifests(t, []byte(broken)) {
		if o.Kind == "DaemonSet" {
			if err := c.Apply(t.Context(), o.apiPath(t), o.text, true); err == nil {
				t.Error("an unknown field was accepted")
			}
		}
	}
}

// rule is a permission of an account.
type rule struct{ Verbs, APIGroups, Resources, ResourceNames []string }

// permissions returns the permissions of an account as the API server reports them.
func permissions(t *testing.T, c *testkube.Cluster, token string) []string {
	t.Helper()
	status, b, err := c.Do(t.Context(), testkube.Request{
		Method: http.MethodPost, Path: "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", Token: token,
		Body: map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
			"spec": map[string]any{"namespace": "default"}},
	})
	if err != nil || status != http.StatusCreated {
		t.Fatalf("status %d, %v: %s", status, err, b)
	}
	var resp struct {
		Status struct{ ResourceRules []rule }
	}
	if err := json.Unmarshal(b, &resp); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range resp.Status.ResourceRules {
		lines = append(lines, fmt.Sprint(r))
	}
	slices.Sort(lines)
	return lines
}

func TestServiceAccountPermissions(t *testing.T) {
	checkPermissions(t, kustomize(t, "kubernetes/overlays/udp"))
}

func TestChartServiceAccountPermissions(t *testing.T) {
	namespace := "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-weft}\n---\n"
	checkPermissions(t, append([]byte(namespace), renderChart(t)...))
}

// checkPermissions compares the permissions of the manifests' account with those of an account
// without a binding, and tries some requests.
func checkPermissions(t *testing.T, manifests []byte) {
	t.Helper()
	c := startControlPlane(t, netip.MustParseAddr("127.0.0.1"))
	apply(t, c, manifests, false)
	d := daemonSet(t, manifests)
	unbound := object{}
	account := "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: unbound, namespace: " + d.Namespace + "}"
	for _, o := range parseManifests(t, []byte(account)) {
		unbound = o
	}
	if err := c.Apply(t.Context(), unbound.apiPath(t), unbound.text, false); err != nil {
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
	base := permissions(t, c, token("unbound"))
	var added []string
	for _, line := range permissions(t, c, weft) {
		if !slices.Contains(base, line) {
			added = append(added, line)
		}
	}
	want := []string{fmt.Sprint(rule{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""},
		Resources: []string{"nodes"}}),
		fmt.Sprint(rule{Verbs: []string{"patch"}, APIGroups: []string{""}, Resources: []string{"nodes/status"}})}
	if !slices.Equal(added, want) {
		t.Errorf("permissions of the account\n%s\nwant\n%s", strings.Join(added, "\n"), strings.Join(want, "\n"))
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
