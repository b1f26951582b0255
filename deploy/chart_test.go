package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// helmEnv names the environment variable with the path of helm.
const helmEnv = "WEFT_HELM"

// helm runs helm on the chart and returns its output, or skips the test.
func helm(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	binary := os.Getenv(helmEnv)
	if binary == "" {
		t.Skipf("NOT TESTED: chart: %s is not set; .ci/helm/build builds helm and prints its path", helmEnv)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(),
		"HELM_DATA_HOME="+t.TempDir())
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return out, err
}

// renderChart renders the chart with values as given to --set.
func renderChart(t testing.TB, values ...string) []byte {
	t.Helper()
	args := []string{"template", "weft", "chart", "--namespace=kube-weft"}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	out, err := helm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimPrefix(out, []byte("---\n"))
}

// comparable returns an object's fields, with the net-conf.json of a ConfigMap parsed.
func (o object) comparable(t testing.TB) map[string]any {
	t.Helper()
	fields := map[string]any{}
	if err := json.Unmarshal(o.text, &fields); err != nil {
		t.Fatal(err)
	}
	data, ok := fields["data"].(map[string]any)
	if !ok {
		return fields
	}
	for name, text := range data {
		var parsed any
		if err := json.Unmarshal([]byte(text.(string)), &parsed); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data[name] = parsed
	}
	return fields
}

// TestChartEqualsOverlays compares the chart's objects with those of the overlays. The namespace is
// helm's.
func TestChartEqualsOverlays(t *testing.T) {
	for overlay, values := range map[string][]string{
		"vxlan":      nil,
		"udp":        {"flannel.backend=udp"},
		"fast-path":  {"flannel.backend=udp", "flannel.fastPath=true"},
		"host-gw":    {"flannel.backend=host-gw"},
		"ipip":       {"flannel.backend=ipip"},
		"wireguard":  {"flannel.backend=wireguard"},
		"dual-stack": {"podCidrv6=fd00:10:244::/56"},
		"nftables":   {"flannel.enableNFTables=true"},
		"k3s":        {"podCidr=10.42.0.0/16"},
	} {
		t.Run(overlay, func(t *testing.T) {
			chart := map[string]map[string]any{}
			for _, o := range parseManifests(t, renderChart(t, values...)) {
				chart[o.Kind] = o.comparable(t)
			}
			for _, o := range parseManifests(t, kustomize(t, "kubernetes/overlays/"+overlay)) {
				if o.Kind == "Namespace" {
					continue
				}
				if want := o.comparable(t); !reflect.DeepEqual(chart[o.Kind], want) {
					t.Errorf("%s of the chart\n%v\nof the overlay\n%v", o.Kind, chart[o.Kind], want)
				}
				delete(chart, o.Kind)
			}
			if len(chart) > 0 {
				t.Errorf("objects only in the chart: %v", chart)
			}
		})
	}
}

func TestChartLint(t *testing.T) {
	if _, err := helm(t, "lint", "--strict", "chart"); err != nil {
		t.Error(err)
	}
}

// TestChartNetConf checks the network config for the values that flannel's chart has.
func TestChartNetConf(t *testing.T) {
	for _, test := range []struct{ values, want string }{
		{"", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`},
		{"flannel.backendPort=4789,flannel.vni=4096,flannel.mtu=1400,flannel.GBP=true,flannel.directRouting=true",
			`{"Network":"10.244.0.0/16",
			"Backend":{"Type":"vxlan","Port":4789,"VNI":4096,"MTU":1400,"GBP":true,"DirectRouting":true}}`},
		{"flannel.backend=wireguard,flannel.backendPort=51999,flannel.backendPortv6=51998,flannel.psk=k,flannel.mtu=1500," +
			"flannel.tunnelMode=auto,flannel.keepaliveInterval=25",
			`{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","ListenPort":51999,"ListenPortV6":51998,"PSK":"k",
			"MTU":1500,"Mode":"auto","PersistentKeepaliveInterval":25}}`},
		{"flannel.backend=udp,flannel.backendPort=8286,flannel.vni=5",
			`{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Port":8286}}`},
		{"flannel.backend=ipip,flannel.directRouting=true",
			`{"Network":"10.244.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}`},
		{"podCidr=,podCidrv6=fd00::/56",
			`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/56","Backend":{"Type":"vxlan"}}`},
	} {
		var got, want any
		text := configMap(t, renderChart(t, test.values))["net-conf.json"]
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v in %s", test.values, err, text)
		}
		if err := json.Unmarshal([]byte(test.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", test.values, text, test.want)
		}
	}
}

func TestChartInvalidValues(t *testing.T) {
	for values, want := range map[string]string{
		"flannel.backend=vxlna": `flannel.backend: "vxlna": want one of vxlan, host-gw, ipip, wireguard, udp`,
		"podCidr=":              "podCidr and podCidrv6 are empty: set one",
	} {
		if _, err := helm(t, "template", "weft", "chart", "--set="+values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}

// TestChartPod checks the values that change the pod.
func TestChartPod(t *testing.T) {
	for _, test := range []struct {
		name, values string
		ok           func(corev1.PodSpec) bool
	}{
		{"image", "flannel.image.repository=r.example.com/weft,flannel.image.tag=1.0", func(s corev1.PodSpec) bool {
			for _, c := range append(s.InitContainers, s.Containers...) {
				if c.Image != "r.example.com/weft:1.0" {
					return false
				}
			}
			return len(s.InitContainers) == 1 && len(s.Containers) == 2
		}},
		{"args", `flannel.args={--ip-masq,--iface=eth1},flannel.healthz.port=9000`, func(s corev1.PodSpec) bool {
			return fmt.Sprint(s.Containers[0].Args) == "[--ip-masq --iface=eth1 --healthz-port=9000]" &&
				s.Containers[1].Args[0] == "--ready=http://127.0.0.1:9000/readyz"
		}},
		{"no health port", "flannel.healthz.port=0", func(s corev1.PodSpec) bool {
			c := s.Containers[0]
			return fmt.Sprint(c.Args) == "[--ip-masq --kube-subnet-mgr]" && c.LivenessProbe == nil &&
				c.ReadinessProbe == nil && c.Ports == nil && s.Containers[1].Args[0] == "--hold"
		}},
		{"probe", "flannel.healthz.livenessProbe.periodSeconds=7", func(s corev1.PodSpec) bool {
			return s.Containers[0].LivenessProbe.PeriodSeconds == 7
		}},
		{"pull secret", "global.imagePullSecrets[0].name=s", func(s corev1.PodSpec) bool {
			return len(s.ImagePullSecrets) == 1 && s.ImagePullSecrets[0].Name == "s"
		}},
		{"directories", "flannel.cniBinDir=/var/lib/cni,flannel.cniConfDir=/var/etc/cni", func(s corev1.PodSpec) bool {
			return hostPath(s, "/var/lib/cni") != nil && hostPath(s, "/var/etc/cni") != nil &&
				hostPath(s, "/opt/cni/bin") == nil
		}},
		{"no CNI config", "flannel.skipCNIConfigInstallation=true", func(s corev1.PodSpec) bool {
			return len(s.Containers) == 1 && hostPath(s, "/etc/cni/net.d") == nil && hostPath(s, "/opt/cni/bin") != nil
		}},
		{"node selector", "flannel.nodeSelector.role=edge", func(s corev1.PodSpec) bool {
			return s.NodeSelector["role"] == "edge" && s.NodeSelector["kubernetes.io/os"] == "linux"
		}},
		{"tolerations", "flannel.tolerations[0].key=k,flannel.tolerations[0].operator=Exists", func(s corev1.PodSpec) bool {
			return len(s.Tolerations) == 1 && s.Tolerations[0].Key == "k"
		}},
		{"resources", "flannel.resources.limits.memory=100Mi", func(s corev1.PodSpec) bool {
			r := s.Containers[0].Resources
			return r.Limits.Memory().String() == "100Mi" && r.Requests.Memory().String() == "50Mi"
		}},
		{"network policies", "netpol.enabled=true", func(s corev1.PodSpec) bool {
			return len(s.Containers) == 3 && s.Containers[2].Command[0] == "/bin/netpol" && hostPath(s, "/lib/modules") != nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := daemonSet(t, renderChart(t, test.values)).Spec.Template.Spec
			if !test.ok(spec) {
				t.Errorf("pod with %s: %+v", test.values, spec)
			}
		})
	}
}
