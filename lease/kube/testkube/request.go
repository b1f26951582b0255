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

// Request is a request to the API server.
type Request struct {
	Method, Path string
	ContentType  string // of Body; JSON if empty
	Body         any    // marshalled as JSON unless it is a []byte
	Token        string // AdminToken if empty
}

// Do sends a request and returns the status code and body of the response. The error concerns the
// connection only.
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
	req, err := http.NewRequestWithContext(ctx, r.Method, c.URL+r.Path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+r.Token)
	req.Header.Set("Content-Type", r.ContentType)
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// client returns an HTTP client that trusts the server's self-signed certificate. It is created
// once; StopAPI and Close close its connections.
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

// DoJSON calls Do and returns an error unless the status is 2xx. It decodes the response into v
// unless v is nil.
func (c *Cluster) DoJSON(ctx context.Context, r Request, v any) error {
	status, b, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	if status < 200 || status > 299 {
		return fmt.Errorf("%s %s: status %d: %s", r.Method, r.Path, status, b)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(b, v)
}

// Apply creates or updates an object by server-side apply. path is the path of the object. If
// dryRun is set, the server validates the object but stores nothing.
func (c *Cluster) Apply(ctx context.Context, path string, object []byte, dryRun bool) error {
	path += "?fieldManager=testkube&force=true"
	if dryRun {
		path += "&dryRun=All"
	}
	return c.DoJSON(ctx, Request{
		Method: http.MethodPatch, Path: path, ContentType: "application/apply-patch+yaml",
		Body: object,
	}, nil)
}

// Token issues a token for a service account, as the kubelet does for a pod.
func (c *Cluster) Token(ctx context.Context, namespace, account string) (string, error) {
	var resp struct{ Status struct{ Token string } }
	err := c.DoJSON(ctx, Request{
		Method: http.MethodPost,
		Path:   "/api/v1/namespaces/" + namespace + "/serviceaccounts/" + account + "/token",
		Body: map[string]any{
			"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
			"spec": map[string]any{},
		},
	}, &resp)
	return resp.Status.Token, err
}
