package cloud

import (
	"bytes"
	"context"
	"crypto/x509"
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
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = withoutPassword(http.ProxyFromEnvironment)
	return &client{http: &http.Client{Timeout: callTimeout, Transport: t, CheckRedirect: stay}, calls: c}
}

// metadataClient returns an HTTP client for a metadata service, which is never behind a proxy.
func metadataClient() *http.Client {
	return &http.Client{Timeout: metadataTimeout, Transport: &http.Transport{}, CheckRedirect: stay}
}

// stay makes a client return redirections: to follow them would send tokens elsewhere.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// withoutPassword returns the function proxy without the proxy's password in errors.
func withoutPassword(proxy func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		u, err := proxy(r)
		if err != nil {
			return nil, errors.New("HTTPS_PROXY is not the URL of a proxy")
		}
		return u, nil
	}
}

// request is a call.
type request struct {
	call, method, url string
	header            map[string]string
	body              []byte
	keys              keyPair                   // that no error may show
	sign              func(*http.Request) error // may be nil
}

// answer is the answer to a call.
type answer struct {
	status int
	header http.Header
	body   []byte
	keys   keyPair // of the request
}

// ok reports whether the call succeeded.
func (a answer) ok() bool { return a.status/100 == 2 }

// send sends a request. The error is for a call without an answer.
func (c *client) send(ctx context.Context, q request) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, q.method, q.url, bytes.NewReader(q.body))
	if err != nil {
		return answer{}, &Error{Call: q.call, err: withoutURL(err)}
	}
	for name, value := range q.header {
		r.Header.Set(name, value)
	}
	if q.sign != nil {
		if err := q.sign(r); err != nil {
			return answer{}, &Error{Call: q.call, Kind: Credentials, err: err}
		}
	}
	response, err := c.http.Do(r)
	if err != nil {
		return answer{}, unanswered(q.call, r.URL.Host, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer exceeds %d bytes", maxAnswer)
	}
	if err != nil {
		return answer{}, unanswered(q.call, r.URL.Host, err)
	}
	return answer{response.StatusCode, response.Header, body, q.keys}, nil
}

// unanswered is the error of a call to a host without an answer.
func unanswered(call, host string, err error) *Error {
	e := &Error{Call: call, Kind: Unavailable, err: fmt.Errorf("%s: %w", host, withoutURL(err))}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		e.Hint = "is there a proxy? Name a file with its CA's certificate in SSL_CERT_FILE"
	}
	return e
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
	is := contentType(a.header) + " instead of " + form
	if strings.HasSuffix(contentType(a.header), strings.ToLower(form)) {
		is = "not the " + form + " of this call"
	}
	text := strings.TrimSpace(a.keys.scrub(string(a.body)))
	return a.complete(&Error{Call: call, Kind: Unavailable, Message: fmt.Sprintf(
		"answer with status %d is %s (%q): is there a proxy?", a.status, is, text[:min(len(text), 80)])})
}

// failure is the error in an answer.
func (a answer) failure(e *Error) *Error {
	e.Code, e.Message = a.keys.scrub(e.Code), a.keys.scrub(e.Message)
	return a.complete(e)
}

// maxPages limits the pages of a list. Even small pages then have thousands of routes.
const maxPages = 200

// pages gets the pages of a list by their tokens; that of the first page, and the next one of the
// last, is empty.
func pages(call string, get func(token string) (next string, err error)) error {
	seen := map[string]bool{}
	for token := ""; ; {
		next, err := get(token)
		if err != nil || next == "" {
			return err
		}
		if seen[next] || len(seen) == maxPages {
			return &Error{Call: call, Kind: Unavailable, Message: "the pages of the list do not end"}
		}
		seen[next] = true
		token = next
	}
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
