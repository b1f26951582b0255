package control

import (
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
	Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// AskPeer requests a path of another node's health server and decodes the answer into v. It asks
// the node's public address first, and then, through the overlay, that of its device.
func AskPeer(ctx context.Context, n Node, port uint16, path string, v any) error {
	var first error
	for _, a := range n.askable() {
		err := askAddr(ctx, netip.AddrPortFrom(a, port), path, v)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrNotPermitted) ||
			errors.Is(err, ErrNotServed) {
			return err
		}
		if first == nil {
			first = err
		}
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

func askAddr(ctx context.Context, at netip.AddrPort, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	u := url.URL{Scheme: "http", Path: path,
		Host: net.JoinHostPort(at.Addr().String(), strconv.Itoa(int(at.Port())))}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	response, err := peerClient.Do(request)
	if err != nil {
		var failed *url.Error // repeats the URL
		if errors.As(err, &failed) {
			err = failed.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer from %s within %v", at, peerTimeout)
		}
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(io.LimitReader(response.Body, maxPeerAnswer)).Decode(v)
	case http.StatusForbidden:
		return ErrNotPermitted
	case http.StatusNotFound:
		return ErrNotServed
	}
	return errors.New(response.Status)
}
