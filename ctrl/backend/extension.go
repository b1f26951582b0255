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

// extensionConfig holds the backend's keys: command lines that run without a shell (see
// ctrl.CheckCommand).
type extensionConfig struct {
	// before the lease; its output is published and becomes the input of the peers' commands
	PreStartupCommand   string
	PostStartupCommand  string // after the lease is held
	SubnetAddCommand    string
	SubnetRemoveCommand string
}

func readExtensionConfig(n lease.Network) (c extensionConfig, err error) {
	if err := decode(n, &c); err != nil {
		return c, err
	}
	for _, x := range []struct{ key, line string }{
		{"PreStartupCommand", c.PreStartupCommand}, {"PostStartupCommand", c.PostStartupCommand},
		{"SubnetAddCommand", c.SubnetAddCommand}, {"SubnetRemoveCommand", c.SubnetRemoveCommand},
	} {
		if err := ctrl.CheckCommand(x.line); err != nil {
			return c, fmt.Errorf("config key %s: %w", x.key, err)
		}
	}
	return c, nil
}

// newExtension reads the four commands.
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

// Plan returns the command after startup and one command per node and family.
func (e *extension) Plan(self lease.Lease, all []lease.Lease) ctrl.State {
	s, peers := startPlan(e.network, "extension", self, all)
	if e.PostStartupCommand != "" {
		env := []string{
			"NETWORK=" + text(e.network.Network), "SUBNET=" + text(self.Subnet),
			"IPV6SUBNET=" + text(self.Subnet6),
			"PUBLIC_IP=" + text(self.PublicIP), "PUBLIC_IPV6=" + text(self.PublicIPv6),
		}
		s.Commands = append(s.Commands, ctrl.Command{ID: "startup", Add: e.PostStartupCommand,
			Env: strings.Join(env, "\n")})
	}
	if e.SubnetAddCommand == "" && e.SubnetRemoveCommand == "" {
		return s
	}
	for _, p := range peers {
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
			Env: "SUBNET=" + p.subnet.String() + "\nPUBLIC_IP=" + p.public.String(), Stdin: output,
		})
	}
	return s
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
