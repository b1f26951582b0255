package testkube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
)

// Request is one call of the API server.
type Request struct {
	Method, Path string
	ContentType  string // of Body; JSON if empty
	Body         any    // marshalled as JSON unless it is a []byte
	Token        string // AdminToken if empty
}

// Do sends a request and returns the status and the body of the answer. The error is about the way there.
func (c *Cluster) Do(ctx context.Context, r Request) (int, []byte, error) {
	body, ok := r.Body.([]byte)
	if !ok && r.Body != nil {
		var err error
		if body, err = json.Marshal(r.Body); err != nil {
			return 0, nil, err
		}
	}
	if r.Token == "" {
		r.Token = AdminToken
	}
	if r.ContentType == "" {
		r.ContentType = "application/json"
	}
	client, err := c.client()
	if err != nil {
		return 0, nil, err
	}
	q, err := http.NewRequestWithContext(ctx, r.Method, c.URL+r.Path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	q.Header.Set("Authorization", "Bearer "+r.Token)
	q.Header.Set("Content-Type", r.ContentType)
	answer, err := client.Do(q)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return answer.StatusCode, b, err
}

// client trusts the certificate that the server has made for itself. It is made once and hung up by StopAPI and Close.
func (c *Cluster) client() (*http.Client, error) {
	if c.http != nil {
		return c.http, nil
	}
	b, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("no certificate in %s", c.CA)
	}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return c.http, nil
}

// DoJSON is Do as an administrator, with an error for every answer that is no success. It decodes the answer into a value
// unless that is nil.
func (c *Cluster) DoJSON(ctx context.Context, r Request, into any) error {
	status, b, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	if status < 200 || status > 299 {
		return fmt.Errorf("%s %s: status %d: %s", r.Method, r.Path, status, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// Apply creates an object or makes it as given, by server-side apply. path is the object's own; dry leaves everything as
// it is after all checks.
func (c *Cluster) Apply(ctx context.Context, path string, object []byte, dry bool) error {
	path += "?fieldManager=testkube&force=true"
	if dry {
		path += "&dryRun=All"
	}
	return c.DoJSON(ctx, Request{Method: http.MethodPatch, Path: path, ContentType: "application/apply-patch+yaml", Body: object}, nil)
}

// Token issues a token of a service account, as the kubelet does for a pod.
func (c *Cluster) Token(ctx context.Context, namespace, account string) (string, error) {
	var answer struct{ Status struct{ Token string } }
	err := c.DoJSON(ctx, Request{
		Method: http.MethodPost,
		Path:   "/api/v1/namespaces/" + namespace + "/serviceaccounts/" + account + "/token",
		Body:   map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{}},
	}, &answer)
	return answer.Status.Token, err
}
