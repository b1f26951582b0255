package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Errors of [AskPeer].
var (
	// ErrNotPermitted means that a node keeps a path from other hosts.
	ErrNotPermitted = errors.New("not permitted for other hosts")
	// ErrNotServed means that a node's health server does not have a path.
	ErrNotServed = errors.New("not served")
)

const (
	// peerTimeout limits the time for an answer from one address of another node.
	peerTimeout = 1500 * time.Millisecond
	// maxPeerAnswer limits the answer of another node, in bytes: the status of 10,000 nodes has
	// about 4 MB.
	maxPeerAnswer = 32 << 20
)

// peerClient asks other nodes directly, without a proxy, and follows none of them elsewhere.
var peerClient = http.Client{
	Transport: &http.Transport{
		DisableKeepAlives: true, ResponseHeaderTimeout: peerTimeout,
		DialContext: (&net.Dialer{Timeout: peerTimeout}).DialContext,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// AskPeer requests a path of another node's health server and decodes the answer into v. It asks
// the node's public address first, and then, through the overlay, that of its device.
func AskPeer(ctx context.Context, n Node, port uint16, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*peerTimeout)
	defer cancel()
	return askPeer(n, func(a netip.Addr) error {
		body, err := request(ctx, netip.AddrPortFrom(a, port), path, nil)
		if err != nil {
			return err
		}
		defer body.Close()
		return json.NewDecoder(io.LimitReader(body, maxPeerAnswer)).Decode(v)
	})
}

// askPeer calls ask with the addresses of a node until the node answers, be it with a refusal. The
// error is that of the first address.
func askPeer(n Node, ask func(netip.Addr) error) error {
	var first error
	for _, a := range n.askable() {
		err := ask(a)
		if err == nil || errors.Is(err, ErrNotPermitted) || errors.Is(err, ErrNotServed) {
			return err
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		return fmt.Errorf("no address of %s is known", n.Name)
	}
	return first
}

// askable returns the addresses to ask for a node's answer.
func (n Node) askable() []netip.Addr {
	var all []netip.Addr
	if n.Public.IsValid() {
		all = append(all, n.Public)
	}
	for _, p := range []*Path{n.Path, n.Path6} {
		if p != nil && p.Address != n.Public && p.Lost < p.Sent {
			return append(all, p.Address)
		}
	}
	return all
}

// request requests a path and returns the answer, which the caller must close.
func request(
	ctx context.Context, at netip.AddrPort, path string, query url.Values,
) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Path: path, RawQuery: query.Encode(),
		Host: net.JoinHostPort(at.Addr().String(), strconv.Itoa(int(at.Port())))}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := peerClient.Do(request)
	if err != nil {
		var failed *url.Error // repeats the URL
		if errors.As(err, &failed) {
			err = failed.Err
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			err = fmt.Errorf("no answer from %s within %v", at, peerTimeout)
		}
		return nil, err
	}
	switch response.StatusCode {
	case http.StatusOK:
		return response.Body, nil
	case http.StatusForbidden:
		err = ErrNotPermitted
	case http.StatusNotFound:
		err = ErrNotServed
	default:
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorText)) // the status is enough
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	return nil, errors.Join(err, response.Body.Close())
}
