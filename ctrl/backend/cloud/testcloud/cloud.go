// Package testcloud is a cloud for tests: servers that speak the protocols of the four providers
// for the calls of package cloud, check every signature, and fail on demand.
package testcloud

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Route is an entry of a route table.
type Route struct {
	Dst       netip.Prefix
	Target    string // next hop, in the provider's words
	BlackHole bool
	Tags      []string // of GCE
	Network   string   // of GCE
	ID        string
	visible   time.Time // not listed before
}

// Failure is an answer instead of the usual one.
type Failure struct {
	Status     int
	Code       string
	Message    string
	HTML       bool          // a page of a proxy
	Hang       bool          // no answer
	Drop       bool          // the connection ends without an answer
	Skew       time.Duration // of the cloud's clock
	RetryAfter string
	Raw, Type  string // a body, and its content type
	Short      bool   // the connection ends before the end of Raw
	Redirect   string // URL to go to
}

// Cloud is the state behind the servers of one provider.
type Cloud struct {
	API, Metadata *httptest.Server

	mu sync.Mutex
	// Items is the metadata by path below the provider's root. A missing one is not found.
	items  map[string]string
	tables map[string][]Route
	order  []string // of tables
	// assoc maps a subnet to its table.
	assoc    map[string]string
	keys     map[string]Key // that are valid, by ID
	failures map[string][]Failure
	requests []string
	problems []string
	delay    time.Duration // until a created route is listed
	pageSize int
	lastID   int
	extra    map[string]string // further answers of the provider
	pending  int               // operations of GCE take that many waits
	done     chan struct{}
}

// Key is a secret and the token that has to come with it.
type Key struct{ Secret, Token string }

func newCloud(api, metadata func(*Cloud) http.HandlerFunc, items map[string]string) *Cloud {
	c := &Cloud{
		items: items, tables: map[string][]Route{}, assoc: map[string]string{},
		keys: map[string]Key{}, failures: map[string][]Failure{}, pageSize: 2,
		extra: map[string]string{}, done: make(chan struct{}),
	}
	c.API = httptest.NewServer(api(c))
	c.Metadata = httptest.NewServer(c.orFail(metadata(c)))
	return c
}

// orFail returns a handler for metadata that fails on demand, and holds the lock.
func (c *Cloud) orFail(metadata http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		f, ok := c.record("metadata", r.URL.Path)
		switch {
		case !ok:
			metadata(w, r)
		case !c.fail(w, r, f):
			w.WriteHeader(f.Status)
		}
	}
}

// Close stops the servers.
func (c *Cloud) Close() {
	close(c.done)
	c.API.Close()
	c.Metadata.Close()
}

// with runs f with the state locked.
func (c *Cloud) with(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// SetItem sets an item of the metadata.
func (c *Cloud) SetItem(path, value string) { c.with(func() { c.items[path] = value }) }

// DeleteItem removes an item of the metadata, and all below it.
func (c *Cloud) DeleteItem(path string) {
	c.with(func() {
		for p := range c.items {
			if strings.HasPrefix(p, path) {
				delete(c.items, p)
			}
		}
	})
}

// Set sets a further property of the provider's answers.
func (c *Cloud) Set(name, value string) { c.with(func() { c.extra[name] = value }) }

// SetKey makes a key valid; an empty secret makes it invalid.
func (c *Cloud) SetKey(id string, k Key) {
	c.with(func() {
		if c.keys[id] = k; k.Secret == "" {
			delete(c.keys, id)
		}
	})
}

// AddTable adds a route table. The subnets, if any, are associated with it.
func (c *Cloud) AddTable(id string, subnets ...string) {
	c.with(func() {
		c.tables[id] = nil
		c.order = append(c.order, id)
		for _, s := range subnets {
			c.assoc[s] = id
		}
	})
}

// AddRoute adds a route to a table, as someone else does.
func (c *Cloud) AddRoute(table string, r Route) {
	c.with(func() {
		c.lastID++
		r.ID = cmp.Or(r.ID, fmt.Sprint(c.lastID))
		c.tables[table] = append(c.tables[table], r)
	})
}

// RemoveRoute removes a route from a table, as someone else does.
func (c *Cloud) RemoveRoute(table string, dst netip.Prefix) {
	c.with(func() { c.remove(table, func(r Route) bool { return r.Dst == dst }) })
}

// Routes returns the routes of a table as texts, "10.5.1.0/24 via eni-1".
func (c *Cloud) Routes(table string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []string{}
	for _, r := range c.tables[table] {
		list = append(list, r.Dst.String()+" via "+r.Target)
	}
	slices.Sort(list)
	return list
}

// Fail makes the next calls fail, one after the other. Those of the metadata are named metadata.
func (c *Cloud) Fail(call string, failures ...Failure) {
	c.with(func() { c.failures[call] = append(c.failures[call], failures...) })
}

// Always makes all calls fail, until Fail with none clears it.
func (c *Cloud) Always(call string, f Failure) {
	list := make([]Failure, 10000)
	for i := range list {
		list[i] = f
	}
	c.with(func() { c.failures[call] = list })
}

// Heal removes all failures.
func (c *Cloud) Heal() { c.with(func() { c.failures = map[string][]Failure{} }) }

// Delay sets the time until a created route is listed.
func (c *Cloud) Delay(d time.Duration) { c.with(func() { c.delay = d }) }

// Wait sets the number of waits after which an operation is done.
func (c *Cloud) Wait(n int) { c.with(func() { c.pending = n }) }

// Requests returns the calls so far with their parameters, in order, without those for metadata.
func (c *Cloud) Requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// Count returns the number of requests that begin with a text.
func (c *Cloud) Count(prefix string) int {
	n := 0
	for _, r := range c.Requests() {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// Problems returns the different violations of the protocol so far.
func (c *Cloud) Problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems)
}

// problem records a violation of the protocol. The caller holds the lock.
func (c *Cloud) problem(format string, args ...any) {
	if p := fmt.Sprintf(format, args...); !slices.Contains(c.problems, p) {
		c.problems = append(c.problems, p)
	}
}

// record records a request and returns its failure. The caller holds the lock.
func (c *Cloud) record(call, parameters string) (Failure, bool) {
	if call != "metadata" {
		c.requests = append(c.requests, strings.TrimSpace(call+" "+parameters))
	}
	list := c.failures[call]
	if len(list) == 0 {
		return Failure{}, false
	}
	c.failures[call] = list[1:]
	return list[0], true
}

// fail writes the parts of a failure that all providers share, and reports whether that is all.
func (c *Cloud) fail(w http.ResponseWriter, r *http.Request, f Failure) bool {
	if f.Hang {
		c.mu.Unlock()
		defer c.mu.Lock()
		select {
		case <-r.Context().Done():
		case <-c.done:
		}
		return true
	}
	if f.Drop {
		panic(http.ErrAbortHandler)
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	if f.Skew != 0 {
		w.Header().Set("Date", time.Now().Add(f.Skew).UTC().Format(http.TimeFormat))
	}
	switch {
	case f.Redirect != "":
		http.Redirect(w, r, f.Redirect, http.StatusTemporaryRedirect)
		return true
	case f.Raw != "":
		w.Header().Set("Content-Type", f.Type)
		if f.Short {
			w.Header().Set("Content-Length", fmt.Sprint(len(f.Raw)+1))
		}
		w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
		fmt.Fprint(w, f.Raw)
		return true
	}
	if f.HTML {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
		fmt.Fprint(w, "<html><body>Sign in to the network</body></html>")
	}
	return f.HTML
}

// listed returns the routes of a table that a list shows; each of them twice with the property
// twice. The caller holds the lock.
func (c *Cloud) listed(table string) []Route {
	var list []Route
	for _, r := range c.tables[table] {
		if !time.Now().Before(r.visible) {
			list = append(list, r)
		}
	}
	if c.extra["twice"] != "" {
		list = append(list, list...)
	}
	return list
}

// DeleteTable removes a route table.
func (c *Cloud) DeleteTable(id string) {
	c.with(func() {
		delete(c.tables, id)
		c.order = slices.DeleteFunc(c.order, func(o string) bool { return o == id })
	})
}

// create adds a route unless there is one. The caller holds the lock.
func (c *Cloud) create(table string, r Route) bool {
	for _, have := range c.tables[table] {
		if have.Dst == r.Dst {
			return false
		}
	}
	c.lastID++
	r.ID = cmp.Or(r.ID, fmt.Sprint(c.lastID))
	r.visible = time.Now().Add(c.delay)
	c.tables[table] = append(c.tables[table], r)
	return true
}

// remove removes routes. It reports whether there were any. The caller holds the lock.
func (c *Cloud) remove(table string, match func(Route) bool) bool {
	n := len(c.tables[table])
	c.tables[table] = slices.DeleteFunc(c.tables[table], match)
	return len(c.tables[table]) < n
}

// page returns the part of a list for a token, and the token of the next. With the property loop,
// there is always a next one.
func page[T any](c *Cloud, list []T, token string) ([]T, string) {
	if c.extra["loop"] != "" {
		return nil, "page-0"
	}
	start, size := 0, c.pageSize
	fmt.Sscanf(token, "page-%d", &start)
	start = min(start, len(list))
	end := min(start+size, len(list))
	if end == len(list) {
		return list[start:end], ""
	}
	return list[start:end], fmt.Sprintf("page-%d", end)
}
