package agent

import (
	"weft/cmd/control"
	"weft/ctrl/backend"
	"weft/ctrl/backend/cloud"
	"weft/metrics"
)

// openCloud returns the manager of the cloud's routes; nil if the backend has none.
func (d *daemon) openCloud(adv backend.Advertisement) (*cloud.Manager, error) {
	if adv.Cloud.Provider == "" {
		return nil, nil
	}
	return cloud.New(adv.Cloud, d.log)
}

// setCloud passes the subnets of this node to the manager of the cloud's routes.
func (a *agent) setCloud() {
	if a.cloud == nil {
		return
	}
	i := a.host.Iface
	a.cloud.Set(cloud.Node{
		Networks: podNetworks(a.network),
		Subnets:  valid(a.self.Subnet.Masked(), a.self.Subnet6.Masked()),
		Addrs:    valid(i.Addr, i.Addr6),
		Public:   valid(i.Public, i.Public6),
	})
}

// valid returns the valid ones of the values.
func valid[T interface{ IsValid() bool }](values ...T) []T {
	var list []T
	for _, v := range values {
		if v.IsValid() {
			list = append(list, v)
		}
	}
	return list
}

// cloudCondition is met while the cloud's route tables have the routes of this node.
func cloudCondition(s cloud.Status) control.Condition {
	c := control.Condition{Name: "cloud", OK: s.InPlace}
	switch {
	case s.Err != nil:
		c.Reason = s.Err.Error()
	case !c.OK:
		c.Reason = "not set up yet"
	case len(s.Notes) > 0:
		c.Reason = s.Notes[0]
	}
	return c
}

// newCloudStatus converts the status of the cloud's routes.
func newCloudStatus(s cloud.Status) *control.Cloud {
	c := &control.Cloud{
		Provider: s.Provider, RouteTables: s.RouteTables, InPlace: s.InPlace, Since: s.Since,
		Checked: s.Checked, Error: errText(s.Err), Notes: s.Notes,
	}
	for _, x := range s.Calls {
		call := metrics.CloudCall{Provider: s.Provider, Call: x.Call, Count: x.Count,
			Errors: map[string]uint64{}}
		for kind, n := range x.Errors {
			call.Errors[string(kind)] = n
		}
		c.Calls = append(c.Calls, call)
	}
	return c
}

// direct reports whether packets to other nodes' pods leave on the underlay's own device, so that a
// node has no overlay device to probe.
func direct(adv backend.Advertisement) bool {
	return adv.Type == "host-gw" || adv.Type == "ipsec" || adv.Cloud.Provider != ""
}
