package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// checkNetAdmin returns an error if the process may not configure the network. The kernel's own
// errors come late and name the object, not the capability.
func checkNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities, 32 each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("capability CAP_NET_ADMIN is missing: run as root, or add it " +
			"(docker run --cap-add=NET_ADMIN, in Kubernetes capabilities: {add: [NET_ADMIN]}, " +
			"in a systemd unit AmbientCapabilities=CAP_NET_ADMIN)")
	}
	return nil
}
