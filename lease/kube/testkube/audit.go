package testkube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Call is one request of a service account.
type Call struct {
	Verb, Resource string // "list nodes", "patch nodes/status"
	URI            string
}

// String returns the verb and the resource.
func (c Call) String() string { return c.Verb + " " + c.Resource }

// Calls returns the requests of service accounts from programs whose user agent begins with agent,
// in order.
func (c *Cluster) Calls(agent string) ([]Call, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "audit.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no requests yet
	}
	if err != nil {
		return nil, err
	}
	var calls []Call
	for line := range bytes.Lines(b) {
		var e struct {
			Stage, Verb, RequestURI, UserAgent string
			ObjectRef                          struct{ Resource, Subresource string }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		if e.Stage != "RequestReceived" || !strings.HasPrefix(e.UserAgent, agent) {
			continue
		}
		call := Call{Verb: e.Verb, Resource: e.ObjectRef.Resource, URI: e.RequestURI}
		if e.ObjectRef.Subresource != "" {
			call.Resource += "/" + e.ObjectRef.Subresource
		}
		calls = append(calls, call)
	}
	return calls, nil
}
