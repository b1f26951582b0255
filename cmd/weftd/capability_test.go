package main

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMissingNetAdminIsNamed(t *testing.T) {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread without capabilities ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		result <- checkNetAdmin()
	}()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN is missing: run as root") {
		t.Errorf("got %v", err)
	}
}
