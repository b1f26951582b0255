package cli

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/lease/kube/testkube"
)

// TestConntestManifestValid has an API server validate the objects of weft test --kubernetes.
func TestConntestManifestValid(t *testing.T) {
	c, err := testkube.Start(netip.MustParseAddr("127.0.0.1"), t.TempDir())
	if errors.Is(err, testkube.ErrNoBinary) {
		t.Skipf("NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	manifest, err := kubeTest{image: "weft:dev", port: 8287}.manifest()
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{
		"/api/v1/namespaces/weft-test", "/api/v1/namespaces/weft-test/services/weft-test",
		"/apis/apps/v1/namespaces/weft-test/daemonsets/weft-test-pod",
		"/apis/apps/v1/namespaces/weft-test/daemonsets/weft-test-host",
	}
	objects := bytes.Split(manifest, []byte("\n---\n"))
	if len(objects) != len(paths) {
		t.Fatalf("%d objects, want %d", len(objects), len(paths))
	}
	for i, path := range paths {
		object, err := yaml.YAMLToJSONStrict(objects[i])
		if err == nil {
			err = c.Apply(t.Context(), path, object, false)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", path, err, objects[i])
		}
	}
}
