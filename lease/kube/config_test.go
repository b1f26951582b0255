package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const adminConfig = `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1:6443"}}],
"users":[{"name":"u","user":{"token":"secret"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`

func TestFindServer(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, ".kube", "config")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(adminConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", path)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, test := range []struct {
		name        string
		config      Config
		host, token string
		err         string
	}{
		{name: "empty", err: "set --kube-api-url or --kubeconfig-file, or run in a pod"},
		{name: "file", config: Config{Kubeconfig: path}, host: "https://192.0.2.1:6443", token: "secret"},
		{name: "URL", config: Config{APIURL: "https://192.0.2.2:6443"}, host: "https://192.0.2.2:6443"},
		{name: "both", config: Config{APIURL: "https://192.0.2.2:6443", Kubeconfig: path},
			host: "https://192.0.2.2:6443", token: "secret"},
		{name: "missing file", config: Config{Kubeconfig: path + "x"}, err: "no such file"},
	} {
		got, err := findServer(test.config)
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: got %v", test.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", test.name, err)
		case got.Host != test.host || got.BearerToken != test.token:
			t.Errorf("%s: host %s, token %q", test.name, got.Host, got.BearerToken)
		}
	}
}
