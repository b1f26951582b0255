package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

const secretText = "hunter2-XYZ"

func TestRedact(t *testing.T) {
	const key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	for _, c := range []struct{ in, want string }{
		{`{"Backend":{"Type":"wireguard","PSK":"` + secretText + `"}}`, `{"Backend":{"Type":"wireguard","PSK":"(hidden)"}}`},
		{`{"Backend":{"Type":"ali-vpc","AccessKeyID":"` + secretText + `","AccessKeySecret":"` + secretText + `"}}`,
			`{"Backend":{"Type":"ali-vpc","AccessKeyID":"(hidden)","AccessKeySecret":"(hidden)"}}`},
		{`"{\"accesskeyid\":\"` + secretText + `\",\"AccessKeySecret\":\"` + secretText + `\"}"`,
			`"{\"accesskeyid\":\"(hidden)\",\"AccessKeySecret\":\"(hidden)\"}"`},
		{"AWS_ACCESS_KEY_ID=" + secretText + " ACCESS_KEY_SECRET=" + secretText, "AWS_ACCESS_KEY_ID=(hidden) ACCESS_KEY_SECRET=(hidden)"},
		{"AWS_SECRET_ACCESS_KEY=" + secretText + "\nAWS_SESSION_TOKEN=" + secretText, "AWS_SECRET_ACCESS_KEY=(hidden)\nAWS_SESSION_TOKEN=(hidden)"},
		{`{"etcd-password": "` + secretText + `", "iface": "eth0"}`, `{"etcd-password": "(hidden)", "iface": "eth0"}`},
		{`"{\"PSK\":\"` + secretText + `\",\"Port\":1}"`, `"{\"PSK\":\"(hidden)\",\"Port\":1}"`},
		{"WEFTD_ETCD_PASSWORD=" + secretText + "\nB=1", "WEFTD_ETCD_PASSWORD=(hidden)\nB=1"},
		{"weftd --etcd-password=" + secretText + " --iface=eth0", "weftd --etcd-password=(hidden) --iface=eth0"},
		{"weftd --etcd-password " + secretText + " --iface=eth0", "weftd --etcd-password (hidden) --iface=eth0"},
		{"token: " + secretText, "token: (hidden)"},
		{"Authorization: Bearer " + secretText, "Authorization: (hidden)"},
		{"https://root:" + secretText + "@etcd:2379/x", "https://root:(hidden)@etcd:2379/x"},
		{"peer " + key + " port 51820", "peer (hidden) port 51820"},
		{"-----BEGIN EC PRIVATE KEY-----\n" + secretText + "\n-----END EC PRIVATE KEY-----\nx",
			"-----BEGIN EC PRIVATE KEY-----(hidden)\nx"},
		{"http://etcd:2379 10.5.1.0/24 fd00::1", "http://etcd:2379 10.5.1.0/24 fd00::1"},
		{"neighbours: 12, tokens_total 3", "neighbours: 12, tokens_total 3"},
	} {
		if got := string(Redact([]byte(c.in))); got != c.want {
			t.Errorf("%s\ngot  %s\nwant %s", c.in, got, c.want)
		}
	}
}

// FuzzRedact puts a secret between any texts.
func FuzzRedact(f *testing.F) {
	f.Add("a\n", " b")
	f.Add(`{"x":1,`, `}`)
	f.Fuzz(func(t *testing.T, before, after string) {
		text := before + "\n" + `"password": "` + secretText + `"` + after
		if bytes.Contains(Redact([]byte(text)), []byte(secretText)) {
			t.Errorf("secret in %q", Redact([]byte(text)))
		}
	})
}

// TestWriteUnreadPart expects the other parts and the reason.
func TestWriteUnreadPart(t *testing.T) {
	var out bytes.Buffer
	unread, err := Write(t.Context(), &out, "weft-n1", []Part{
		{"a.txt", func(context.Context) ([]byte, error) { return []byte("password=" + secretText), nil }},
		{"b.txt", func(context.Context) ([]byte, error) { return nil, errors.New("no such thing") }},
	})
	if err != nil || len(unread) != 1 {
		t.Fatalf("%v, %v", unread, err)
	}
	files := readArchive(t, &out)
	if files["weft-n1/a.txt"] != "password=(hidden)" ||
		!strings.Contains(files["weft-n1/errors.txt"], "b.txt: no such thing") || len(files) != 2 {
		t.Errorf("got %q", files)
	}
}

func readArchive(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	zipped, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(zipped); ; {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[head.Name] = string(content)
	}
}
