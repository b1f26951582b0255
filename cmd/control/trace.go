package control

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
)

// Watch describes the packets of a trace that a node looks for: those of some lengths that hold one
// of the marks.
type Watch struct {
	IPv6    bool
	Marks   [][]byte
	Lengths []int // of the whole inner packets, in bytes
}

// Limits of a Watch.
const (
	minMark, maxMark = 8, 64
	maxMarks         = 2
	maxLengths       = 4
	maxWatchLength   = 512 // of a packet
)

// Values returns the parameters of a request for the watch.
func (w Watch) Values() url.Values {
	v := url.Values{}
	if w.IPv6 {
		v.Set("ipv6", "1")
	}
	for _, m := range w.Marks {
		v.Add("mark", hex.EncodeToString(m))
	}
	for _, n := range w.Lengths {
		v.Add("length", strconv.Itoa(n))
	}
	return v
}

// ParseWatch returns the watch that the parameters of a request describe.
func ParseWatch(v url.Values) (w Watch, err error) {
	if text := v.Get("ipv6"); text != "" {
		if w.IPv6, err = strconv.ParseBool(text); err != nil {
			return w, fmt.Errorf("ipv6 %q: want 0 or 1", text)
		}
	}
	for _, text := range v["mark"] {
		m, err := hex.DecodeString(text)
		if err != nil || len(m) < minMark || len(m) > maxMark {
			return w, fmt.Errorf("mark %q: want %d to %d bytes in hexadecimal", text, minMark, maxMark)
		}
		w.Marks = append(w.Marks, m)
	}
	if len(w.Marks) == 0 || len(w.Marks) > maxMarks {
		return w, fmt.Errorf("%d marks: want 1 to %d", len(w.Marks), maxMarks)
	}
	for _, text := range v["length"] {
		n, err := strconv.Atoi(text)
		if err != nil || n < minMark || n > maxWatchLength {
			return w, fmt.Errorf("length %q: want a number from %d to %d", text, minMark, maxWatchLength)
		}
		w.Lengths = append(w.Lengths, n)
	}
	if len(w.Lengths) == 0 || len(w.Lengths) > maxLengths {
		return w, fmt.Errorf("%d lengths: want 1 to %d", len(w.Lengths), maxLengths)
	}
	return w, nil
}

// Sightings are the places on a node where the packets of a watch were seen, in that order.
type Sightings struct {
	Node string     `json:"node"`
	Seen []Sighting `json:"seen"`
	// Unwatched lists places that cannot be looked at, with the reasons.
	Unwatched []string `json:"unwatched,omitempty"`
}

// Sighting is a place where packets were seen.
type Sighting struct {
	Place    Place  `json:"place"`
	Device   string `json:"device,omitempty"`
	Outbound bool   `json:"outbound"` // leaves the device; at the engine: to another node
	Packets  int    `json:"packets"`
	Drop     string `json:"drop,omitempty"` // the engine's reason for dropping them
}

// Place is where a packet is seen on its way through a node.
type Place string

// The places.
const (
	PlaceBridge   Place = "bridge"   // of the pods
	PlaceEngine   Place = "engine"   // a worker of the udp backend
	PlaceOverlay  Place = "overlay"  // the device of the backend
	PlaceUnderlay Place = "underlay" // the interface to the other nodes
)

// WatchReader reads the sightings of a node while it looks for packets.
type WatchReader struct {
	body    io.ReadCloser
	decoder *json.Decoder
	last    Sightings
}

// Watch makes the daemon look for packets, until the reader is closed. When it returns, the daemon
// looks.
func (c *Client) Watch(ctx context.Context, w Watch) (*WatchReader, error) {
	body, err := c.Stream(ctx, TracePath, w.Values())
	if err != nil {
		return nil, err
	}
	return newWatchReader(body)
}

// WatchPeer makes another node look for packets.
func WatchPeer(ctx context.Context, n Node, port uint16, w Watch) (r *WatchReader, err error) {
	err = askPeer(n, func(a netip.Addr) error {
		response, err := request(ctx, netip.AddrPortFrom(a, port), TracePath, w.Values())
		if err == nil {
			r, err = newWatchReader(response)
		}
		return err
	})
	return r, err
}

func newWatchReader(body io.ReadCloser) (*WatchReader, error) {
	r := &WatchReader{body: body, decoder: json.NewDecoder(io.LimitReader(body, maxPeerAnswer))}
	if err := r.decoder.Decode(&r.last); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", TracePath, err), body.Close())
	}
	return r, nil
}

// Last reads sightings until there are no more, or ctx is done, and returns the last ones.
func (r *WatchReader) Last(ctx context.Context) Sightings {
	stop := context.AfterFunc(ctx, func() { r.body.Close() })
	defer stop()
	for {
		var s Sightings
		if err := r.decoder.Decode(&s); err != nil {
			return r.last
		}
		r.last = s
	}
}
