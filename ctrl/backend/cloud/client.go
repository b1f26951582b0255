package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// callTimeout limits the time of a call. GCE waits up to two minutes for an operation.
	callTimeout = 20 * time.Second
	// metadataTimeout limits the time of a request to the metadata service, which is on the host.
	metadataTimeout = 3 * time.Second
	// maxAnswer limits an answer, in bytes: a page of a few hundred routes has less.
	maxAnswer = 8 << 20
	// maxSkew is the difference of clocks that an error mentions. AWS, Alibaba and Tencent refuse
	// requests that are more than 5 to 15 minutes off.
	maxSkew = time.Minute
)

// client sends requests and counts them.
type client struct {
	http  *http.Client
	calls *calls
}

func newClient(c *calls) *client {
	return &client{http: &http.Client{Timeout: callTimeout}, calls: c}
}

// metadataClient returns an HTTP client for a metadata service, which is never behind a proxy.
func metadataClient() *http.Client {
	return &http.Client{Timeout: metadataTimeout, Transport: &http.Transport{}}
}

// answer is the answer to a call.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ok reports whether the call succeeded.
func (a answer) ok() bool { return a.status/100 == 2 }

// do sends the request of a call. The error is for a call without an answer.
func (c *client) do(call string, r *http.Request) (answer, error) {
	response, err := c.http.Do(r)
	if err != nil {
		return answer{}, &Error{Call: call, Kind: Unavailable, err: withoutURL(err)}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer exceeds %d bytes", maxAnswer)
	}
	if err != nil {
		return answer{}, &Error{Call: call, Kind: Unavailable, err: withoutURL(err)}
	}
	return answer{response.StatusCode, response.Header, body}, nil
}

// withoutURL removes the URL, which may have credentials, from an error.
func withoutURL(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		if failed.Timeout() {
			return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
		}
		return failed.Err
	}
	return err
}

// unreadable is the error for an answer in another form than the cloud's, as of a proxy.
func (a answer) unreadable(call, form string) *Error {
	text := strings.TrimSpace(string(a.body[:min(len(a.body), 80)]))
	return &Error{Call: call, Kind: Unavailable, Message: fmt.Sprintf(
		"answer with status %d is %s instead of %s (%q): is there a proxy?",
		a.status, contentType(a.header), form, text)}
}

func contentType(h http.Header) string {
	t, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	if t == "" {
		return "of no type"
	}
	return t
}

// complete adds to an error what the answer's header tells: how long to wait, and by how much the
// clocks differ.
func (a answer) complete(e *Error) *Error {
	if s, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	if a.status == http.StatusTooManyRequests {
		e.Kind = Throttled
	}
	if e.Kind == Other && a.status >= 500 {
		e.Kind = Unavailable
	}
	if date, err := http.ParseTime(a.header.Get("Date")); err == nil && e.Kind == Credentials {
		if skew := time.Since(date).Round(time.Second); skew.Abs() > maxSkew {
			e.Hint = fmt.Sprintf("the clock of this node is %v off", skew)
		}
	}
	return e
}

// Calls counts the calls of one name.
type Calls struct {
	Call   string
	Count  uint64
	Errors map[Kind]uint64
}

// calls counts calls by name.
type calls struct {
	mu     sync.Mutex
	byName map[string]*Calls
}

// add counts a call and its error.
func (c *calls) add(call string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byName == nil {
		c.byName = map[string]*Calls{}
	}
	n := c.byName[call]
	if n == nil {
		n = &Calls{Call: call, Errors: map[Kind]uint64{}}
		c.byName[call] = n
	}
	n.Count++
	if err != nil {
		n.Errors[kindOf(err)]++
	}
}
