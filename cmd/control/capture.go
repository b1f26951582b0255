package control

import (
	"fmt"
	"net/url"
	"strconv"
)

// Capture selects the packets of a capture.
type Capture struct {
	Inner, Outer bool   // the points to record; neither means Inner
	Filter       string // in the language of tcpdump; empty matches every packet
	Node         string // only packets to and from this node; empty means all
	DropsOnly    bool   // only packets that were dropped
	SnapLen      int    // bytes recorded per packet; 0 means all
	Memory       int    // bytes of the ring in the daemon; 0 means its default
	Count        int    // packets after which the capture ends; 0 means never
}

// Values returns the parameters of a request for the capture.
func (c Capture) Values() url.Values {
	v := url.Values{}
	for name, on := range map[string]bool{"inner": c.Inner, "outer": c.Outer, "drops": c.DropsOnly} {
		if on {
			v.Set(name, "1")
		}
	}
	for name, text := range map[string]string{"filter": c.Filter, "node": c.Node} {
		if text != "" {
			v.Set(name, text)
		}
	}
	for name, n := range map[string]int{"snaplen": c.SnapLen, "memory": c.Memory, "count": c.Count} {
		if n != 0 {
			v.Set(name, strconv.Itoa(n))
		}
	}
	return v
}

// ParseCapture returns the capture that the parameters of a request describe.
func ParseCapture(v url.Values) (c Capture, err error) {
	c.Filter, c.Node = v.Get("filter"), v.Get("node")
	for name, on := range map[string]*bool{
		"inner": &c.Inner, "outer": &c.Outer, "drops": &c.DropsOnly,
	} {
		if text := v.Get(name); text != "" {
			if *on, err = strconv.ParseBool(text); err != nil {
				return c, fmt.Errorf("invalid %s %q: want 0 or 1", name, text)
			}
		}
	}
	for name, n := range map[string]*int{"snaplen": &c.SnapLen, "memory": &c.Memory, "count": &c.Count} {
		if text := v.Get(name); text != "" {
			if *n, err = strconv.Atoi(text); err != nil || *n < 0 {
				return c, fmt.Errorf("invalid %s %q: want a number", name, text)
			}
		}
	}
	return c, nil
}
