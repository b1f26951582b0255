package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

func storeChecks() []check {
	return []check{
		{name: "store-denied", needs: []source{fromDaemon}, find: findStoreDenied},
		{name: "store-compacted", needs: []source{fromDaemon}, find: findStoreCompacted},
		{name: "store-proxied", needs: []source{fromDaemon}, find: findStoreProxied},
		{name: "store-down", needs: []source{fromDaemon, fromStore}, find: findStoreDown},
		{name: "store-slow", needs: []source{fromStore}, find: findStoreSlow},
		{name: "clock-skew", needs: []source{fromStore}, find: findClockSkew},
		{name: "lease-expiring", needs: []source{fromDaemon}, symptom: true, find: findLeaseExpiring},
	}
}

// storeError returns the daemon's error about its store, or its reason to wait for the config.
func (f *Facts) storeError() string {
	if f.Daemon.Store.Error != "" {
		return f.Daemon.Store.Error
	}
	return f.Daemon.condition("config")
}

// storeErrorWith returns the error if it contains one of the texts.
func (f *Facts) storeErrorWith(texts ...string) string {
	for _, text := range texts {
		if strings.Contains(strings.ToLower(f.storeError()), text) {
			return f.storeError()
		}
	}
	return ""
}

func findStoreDenied(f *Facts) []Finding {
	err := f.storeErrorWith("permission denied", "forbidden", "unauthorized", "authentication failed",
		"invalid auth token", "user name is empty")
	if err == "" {
		return nil
	}
	remedy := "give the user of --etcd-username a role with readwrite on " + f.Daemon.Store.Prefix + "/"
	if f.Daemon.Store.Kind == "kubernetes" {
		remedy = "kubectl apply the ClusterRole of deploy/kubernetes again"
	}
	return []Finding{{Evidence: err, Cause: "the lease store refuses this daemon", Remedy: remedy}}
}

func findStoreCompacted(f *Facts) []Finding {
	err := f.storeErrorWith("compacted")
	if err == "" {
		return nil
	}
	return []Finding{{
		Evidence: err,
		Cause:    "etcd has discarded the revision that the daemon waits for; it reads the whole list again",
		Remedy:   "none if it passes; else compact less often (--auto-compaction-retention of etcd)",
	}}
}

// findStoreProxied looks for a proxy between the node and the store.
func findStoreProxied(f *Facts) []Finding {
	if f.Daemon.Store.Connected && f.Daemon.Store.Error == "" {
		return nil
	}
	var answers []string
	for _, e := range f.Store {
		var p proxyError
		if errors.As(e.Err, &p) {
			answers = append(answers, e.URL+": "+e.Err.Error())
		}
	}
	cause := "a proxy or another server answers in place of the lease store"
	if len(answers) == 0 && f.halfProxied() {
		answers = []string{f.Store[0].URL + " answers the doctor's request, but the daemon has: " + f.storeError()}
		cause = "a proxy on the way passes HTTP/1.1 only, and the daemon's requests are HTTP/2 (gRPC)"
	}
	if len(answers) == 0 {
		return nil
	}
	return []Finding{{
		Evidence: listed(answers),
		Cause:    cause,
		Remedy:   "correct --etcd-endpoints, or exempt the servers from the proxy on the way",
	}}
}

// halfProxied reports whether etcd answers a plain request, but breaks the daemon's as no etcd
// does.
func (f *Facts) halfProxied() bool {
	broken := f.storeErrorWith("received http status", "unexpected http status", "error reading server preface",
		"http/1.", "malformed http", "content-type")
	return broken != "" && slices.ContainsFunc(f.Store, func(e Endpoint) bool { return e.Err == nil })
}

// proxyError reports an answer that no store gives.
type proxyError struct{ status string }

func (p proxyError) Error() string { return "answer " + p.status }

func findStoreDown(f *Facts) []Finding {
	silent := !slices.ContainsFunc(f.Store, func(e Endpoint) bool { return e.Err == nil })
	connected := f.Daemon.Store.Connected && f.Daemon.Store.Error == ""
	if connected && !silent || f.Daemon.Store.Kind == "file" {
		return nil
	}
	if len(findStoreDenied(f))+len(findStoreCompacted(f))+len(findStoreProxied(f)) > 0 {
		return nil
	}
	var failed []string
	for _, e := range f.Store {
		if e.Err != nil {
			failed = append(failed, e.URL+": "+e.Err.Error())
		}
	}
	if len(failed) == 0 && f.storeError() == "" {
		return nil
	}
	evidence := f.storeError()
	if len(failed) > 0 {
		evidence = strings.TrimPrefix(evidence+"; "+listed(failed), "; ")
	}
	return []Finding{{
		Evidence: evidence,
		Cause: "the lease store does not answer: pods reach the nodes known so far, new or moved nodes are " +
			"unknown, and leases expire after a day",
		Remedy: "start the store, or correct --etcd-endpoints or --kube-api-url: " +
			strings.Join(f.Daemon.Store.Endpoints, " "),
	}}
}

// slowStore is the time of a request above which watches and renewals suffer. A request takes
// milliseconds; etcd's own warning is at 100 ms.
const slowStore = time.Second

func findStoreSlow(f *Facts) []Finding {
	var out []Finding
	for _, e := range f.Store {
		if e.Err == nil && e.Took > slowStore {
			out = append(out, Finding{
				Evidence: fmt.Sprintf("%s took %v for a small request", e.URL, e.Took.Round(time.Millisecond)),
				Cause:    "the store's disk or network is slow, so that nodes learn of changes late",
				Remedy:   "etcdctl endpoint status; fast disks for etcd, or fewer clients",
			})
		}
	}
	return out
}

// maxSkew is the difference of clocks above which the times of certificates and leases mislead.
const maxSkew = 30 * time.Second

func findClockSkew(f *Facts) []Finding {
	for _, e := range f.Store {
		if !e.Dated || e.Skew.Abs() < maxSkew {
			continue
		}
		return []Finding{{
			Evidence: fmt.Sprintf("the clock of %s differs from this node's by %v", e.URL, e.Skew.Round(time.Second)),
			Cause:    "one clock is wrong: certificates and leases seem expired, or not yet valid",
			Remedy:   "timedatectl set-ntp true on this node; chronyc tracking",
		}}
	}
	return nil
}

// leaseMargin returns the time before the end of a lease at which it must have been renewed: half
// of the daemon's margin, which is an hour by default.
func (f *Facts) leaseMargin() time.Duration {
	minutes, err := strconv.Atoi(f.Daemon.Flags["subnet-lease-renew-margin"])
	if err != nil || minutes <= 0 {
		minutes = 60
	}
	return time.Duration(minutes) * time.Minute / 2
}

func findLeaseExpiring(f *Facts) []Finding {
	l := f.Daemon.Lease
	if l == nil || l.Expires.IsZero() || l.Expires.Sub(f.Now) > f.leaseMargin() {
		return nil
	}
	evidence := fmt.Sprintf("the lease of %s ends in %v", l.Subnet, l.Expires.Sub(f.Now).Round(time.Second))
	if l.Expires.Before(f.Now) {
		evidence = fmt.Sprintf("the lease of %s has ended %v ago", l.Subnet, f.Now.Sub(l.Expires).Round(time.Second))
	}
	return []Finding{{
		Evidence: evidence,
		Cause:    "the daemon cannot renew it: the store is away or refuses, or a clock is wrong",
		Remedy:   "the daemon's log has the reason; after the end another node may get the subnet",
	}}
}
