package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"weft/ctrl"
	"weft/lease"
)

// extension runs configured commands when nodes join and leave.
type extension struct {
	network lease.Network
	local   LocalNode
	extensionConfig
	data json.RawMessage // published
}

// extensionConfig holds the backend's keys: command lines (see ctrl.RunCommand).
type extensionConfig struct {
	// before the lease; its output is published and becomes the input of the peers' commands
	PreStartupCommand   string
	PostStartupCommand  string // after the lease is held
	SubnetAddCommand    string
	SubnetRemoveCommand string
	ShutdownCommand     string // when the daemon ends
}

func readExtensionConfig(n lease.Network) (c extensionConfig, err error) {
	if err := decode(n, &c); err != nil {
		return c, err
	}
	for _, x := range []struct{ key, line string }{
		{"PreStartupCommand", c.PreStartupCommand}, {"PostStartupCommand", c.PostStartupCommand},
		{"SubnetAddCommand", c.SubnetAddCommand}, {"SubnetRemoveCommand", c.SubnetRemoveCommand},
		{"ShutdownCommand", c.ShutdownCommand},
	} {
		if err := ctrl.CheckCommand(x.line); err != nil {
			return c, fmt.Errorf("config key %s: %w", x.key, err)
		}
	}
	return c, nil
}

// newExtension reads the commands.
func newExtension(n lease.Network, l LocalNode) (Backend, error) {
	c, err := readExtensionConfig(n)
	if err != nil {
		return nil, err
	}
	e := &extension{network: n, local: l, extensionConfig: c}
	if c.PreStartupCommand != "" {
		if e.data, err = json.Marshal(l.Startup); err != nil {
			return nil, fmt.Errorf("output of PreStartupCommand: %w", err)
		}
	}
	return e, nil
}

// prepareExtension runs the PreStartupCommand.
func prepareExtension(_ kernel, n lease.Network, l *LocalNode, _ LocalOptions) error {
	c, err := readExtensionConfig(n)
	if err != nil {
		return err
	}
	if l.Startup, err = ctrl.RunCommand(context.Background(), c.PreStartupCommand, "",
		""); err != nil {
		return fmt.Errorf("PreStartupCommand: %w", err)
	}
	return nil
}

// Plan returns the commands of this node and one command per other node.
func (e *extension) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(e.network, "extension", self, all)
	s.FlannelRoutes = nil // the commands may add routes of this form
	if e.PostStartupCommand != "" || e.ShutdownCommand != "" {
		s.Commands = append(s.Commands, ctrl.Command{
			ID: "startup", Add: e.PostStartupCommand, Shutdown: e.ShutdownCommand,
			Env: "NETWORK=" + text(e.network.Network) + "\n" + leaseEnv(self),
		})
	}
	if e.SubnetAddCommand == "" && e.SubnetRemoveCommand == "" {
		return s
	}
	for i, p := range peers {
		if i > 0 && p.v6 && p.lease.Equal(peers[i-1].lease) {
			continue // the command of the node's IPv4 subnet concerns both
		}
		// flannel publishes the node's output once, in the IPv4 data, for both families.
		var output string
		if len(p.lease.BackendData) > 0 {
			if err := json.Unmarshal(p.lease.BackendData, &output); err != nil {
				unreachable(&s, p, fmt.Errorf("lease has invalid extension data: %w", err))
				continue
			}
		}
		s.Commands = append(s.Commands, ctrl.Command{
			ID: p.subnet.String(), Add: e.SubnetAddCommand, Remove: e.SubnetRemoveCommand,
			Env: leaseEnv(p.lease), Stdin: output,
		})
	}
	return s
}

// leaseEnv returns the variables of a node for commands.
func leaseEnv(l lease.Lease) string {
	return strings.Join([]string{
		"SUBNET=" + text(l.Subnet), "IPV6SUBNET=" + text(l.Subnet6),
		"PUBLIC_IP=" + text(l.PublicIP), "PUBLIC_IPV6=" + text(l.PublicIPv6),
	}, "\n")
}

// text formats an address or prefix; an unset one is empty.
func text(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// Advertisement publishes the output of PreStartupCommand as a JSON string.
func (e *extension) Advertisement() Advertisement {
	a := Advertisement{Type: "extension", Attrs: e.local.attrs("extension"), MTU: e.local.Iface.MTU}
	a.Attrs.BackendData = e.data
	return a
}
