package deploy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"weft/lease/kube/testkube"
)

var update = flag.Bool("update", false, "rewrite weft.yml")

// header is the beginning of weft.yml.
const header = `# Weft for a Kubernetes cluster, with the udp backend. The cluster must assign pod CIDRs to its nodes
# (kube-controller-manager --allocate-node-cidrs, kubeadm init --pod-network-cidr=10.244.0.0/16).
#
# No registry has the image weft:dev. Build it (make image), push it, and enter its name:
#
#	sed 's|weft:dev|registry.example.com/weft:1.0|' weft.yml | kubectl apply -f -
#
# Rendered from overlays/udp by go test ./deploy -run TestWeftYML -update.
`

// kustomize renders a directory relative to this file.
func kustomize(t testing.TB, dir string) []byte {
	t.Helper()
	binary := os.Getenv(testkube.BinaryEnv)
	if binary == "" {
		t.Skipf("NOT TESTED: render %s: %v", dir, testkube.ErrNoBinary)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(binary, "kustomize", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("render %s: %v\n%s", dir, err, &stderr)
	}
	return out
}

// overlays returns the backends that have an overlay.
func overlays() []string { return []string{"udp", "vxlan", "host-gw"} }

func TestWeftYML(t *testing.T) {
	want := append([]byte(header), kustomize(t, "kubernetes/overlays/udp")...)
	if *update {
		if err := os.WriteFile("kubernetes/weft.yml", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("kubernetes/weft.yml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("weft.yml differs from the rendered overlays/udp; -update rewrites it")
	}
}

// object is one manifest of a file.
type object struct {
	text       []byte // JSON
	APIVersion string
	Kind       string
	Metadata   struct{ Name, Namespace string }
}

// parseManifests returns the objects of a file.
func parseManifests(t testing.TB, manifests []byte) []object {
	t.Helper()
	var objects []object
	for _, text := range strings.Split(string(manifests), "\n---\n") {
		b, err := yaml.YAMLToJSONStrict([]byte(text))
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		o := object{text: b}
		if err := json.Unmarshal(b, &o); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	return objects
}

// apiPath returns the path of the object on the API server.
func (o object) apiPath(t testing.TB) string {
	t.Helper()
	resources := map[string]string{
		"Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps",
		"DaemonSet":   "daemonsets",
		"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Pod": "pods",
	}
	resource, ok := resources[o.Kind]
	if !ok {
		t.Fatalf("%s: unknown API path", o.Kind)
	}
	base := "/apis/" + o.APIVersion
	if !strings.Contains(o.APIVersion, "/") {
		base = "/api/" + o.APIVersion
	}
	if o.Metadata.Namespace != "" {
		base += "/namespaces/" + o.Metadata.Namespace
	}
	return base + "/" + resource + "/" + o.Metadata.Name
}

// apply applies the manifests to the API server, or only validates them if dryRun is set.
func apply(t testing.TB, c *testkube.Cluster, manifests []byte, dryRun bool) {
	t.Helper()
	for _, o := range parseManifests(t, manifests) {
		// Objects cannot be validated before their namespace exists.
		if err := c.Apply(t.Context(), o.apiPath(t), o.text, dryRun && o.Kind != "Namespace"); err != nil {
			t.Errorf("%s %s: %v", o.Kind, o.Metadata.Name, err)
		}
	}
}

// daemonSet returns the DaemonSet among manifests. Unknown fields are errors.
func daemonSet(t testing.TB, manifests []byte) appsv1.DaemonSet {
	t.Helper()
	for _, o := range parseManifests(t, manifests) {
		if o.Kind != "DaemonSet" {
			continue
		}
		var d appsv1.DaemonSet
		if err := yaml.UnmarshalStrict(o.text, &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	t.Fatal("no DaemonSet")
	return appsv1.DaemonSet{}
}

// configMap returns the files of the ConfigMap among manifests.
func configMap(t testing.TB, manifests []byte) map[string]string {
	t.Helper()
	for _, o := range parseManifests(t, manifests) {
		var m corev1.ConfigMap
		if o.Kind == "ConfigMap" {
			if err := yaml.UnmarshalStrict(o.text, &m); err != nil {
				t.Fatal(err)
			}
			return m.Data
		}
	}
	t.Fatal("no ConfigMap")
	return nil
}

// TestDaemonSet checks the properties that docs/kubernetes.md promises, in every overlay.
func TestDaemonSet(t *testing.T) {
	for _, overlay := range overlays() {
		t.Run(overlay, func(t *testing.T) {
			d := daemonSet(t, kustomize(t, filepath.Join("kubernetes", "overlays", overlay)))
			spec := d.Spec.Template.Spec
			if u := d.Spec.UpdateStrategy; u.Type != appsv1.RollingUpdateDaemonSetStrategyType ||
				u.RollingUpdate.MaxUnavailable.IntValue() != 1 {
				t.Errorf("update strategy %+v", u)
			}
			if !spec.HostNetwork || spec.PriorityClassName != "system-node-critical" {
				t.Errorf("host network %v, priority class %q", spec.HostNetwork, spec.PriorityClassName)
			}
			if spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("seccomp %+v", spec.SecurityContext)
			}
			for _, c := range append(spec.InitContainers, spec.Containers...) {
				s := c.SecurityContext
				if s.Privileged != nil && *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem {
					t.Errorf("%s: %+v", c.Name, s)
				}
				want := ""
				if c.Name == "weft" {
					want = fmt.Sprint(daemonCapabilities(overlay))
				} else if len(s.Capabilities.Add) == 0 {
					want = "[]"
				}
				if fmt.Sprint(s.Capabilities.Drop) != "[ALL]" || fmt.Sprint(s.Capabilities.Add) != want {
					t.Errorf("%s: capabilities %+v", c.Name, s.Capabilities)
				}
			}
			wanted := overlay == "udp" || overlay == "wireguard"
			if tun := hostPath(spec, "/dev/net/tun"); (tun != nil) != wanted {
				t.Errorf("/dev/net/tun is mounted: %v", tun != nil)
			}
		})
	}
}

// daemonCapabilities returns the capabilities of the daemon in an overlay.
func daemonCapabilities(overlay string) []string {
	if overlay == "udp" {
		return []string{"NET_ADMIN", "NET_RAW", "SYS_NICE"}
	}
	return []string{"NET_ADMIN", "NET_RAW"}
}

// hostPath returns the volume of a host path, or nil.
func hostPath(spec corev1.PodSpec, path string) *corev1.Volume {
	for i, v := range spec.Volumes {
		if v.HostPath != nil && v.HostPath.Path == path {
			return &spec.Volumes[i]
		}
	}
	return nil
}
