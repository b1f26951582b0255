package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// Errors of a [Client].
var (
	// ErrNoDaemon means that no daemon listens on the socket.
	ErrNoDaemon = errors.New("no daemon is running, or it has no control socket")
	// ErrPermission means that the user may not use the socket.
	ErrPermission = errors.New("permission denied: the control socket is for root")
	// ErrNoAnswer means that a daemon listens, but has not begun to answer in time. It is also a
	// timeout, [os.ErrDeadlineExceeded].
	ErrNoAnswer = fmt.Errorf("the daemon does not answer: it hangs or is stopped: %w", os.ErrDeadlineExceeded)
	// ErrUnknownPath means that the daemon's version lacks the path.
	ErrUnknownPath = errors.New("the daemon does not support this: its version differs")
)

// patience is the time until an answer must begin. The slowest, of a capture without packets,
// begins at once.
const patience = 5 * time.Second

// Client asks the daemon on this node. It is safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client for the control socket at a path. It does not connect yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	// Without keep-alives, no idle connection outlives a request.
	return &Client{socket: socket, http: http.Client{
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, ResponseHeaderTimeout: patience,
		},
	}}
}

// Status returns the state of the daemon.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.Get(ctx, StatusPath, nil, &s)
	return s, err
}

// Get requests a path with optional parameters and decodes the answer into v.
func (c *Client) Get(ctx context.Context, path string, query url.Values, v any) error {
	body, err := c.Stream(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("%s: %s: invalid answer: %w", c.socket, path, err)
	}
	return nil
}

// Stream requests a path with optional parameters and returns the answer as it arrives, until the
// daemon ends it or ctx is done. The caller must close it.
func (c *Client) Stream(
	ctx context.Context, path string, query url.Values,
) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "weftd", Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.socket, dialError(err))
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	return nil, fmt.Errorf("%s: %s: %w", c.socket, path, answerError(response))
}

// dialError classifies an error of a request without an answer.
func dialError(err error) error {
	var failed *url.Error // repeats the URL, which is not the user's
	if errors.As(err, &failed) {
		err = failed.Err
	}
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return ErrNoAnswer
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNoDaemon
	case errors.Is(err, fs.ErrPermission):
		return ErrPermission
	}
	return err
}

// maxErrorText limits the text of an error from the daemon, in bytes.
const maxErrorText = 4096

// answerError converts an answer with another code than 200.
func answerError(r *http.Response) error {
	if r.StatusCode == http.StatusNotFound {
		return ErrUnknownPath
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxErrorText))
	if err != nil {
		return fmt.Errorf("%s: %w", r.Status, err)
	}
	return fmt.Errorf("%s: %s", r.Status, strings.TrimSpace(string(text)))
}
