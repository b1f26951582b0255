package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layouts of linux/ethtool.h.
const (
	ethSSFeatures  = 4  // enum ethtool_stringset, ETH_SS_FEATURES
	ethGStringLen  = 32 // ETH_GSTRING_LEN
	featureBlock   = 32 // features per struct ethtool_get_features_block
	stringsHeader  = 12 // cmd, string set, count
	featuresHeader = 8  // cmd, size
	setBlockBytes  = 8  // valid, requested
	getBlockBytes  = 16 // available, requested, active, never changed
)

// apply turns off the offloads that the mode's devices do not have. Without segmentation offload a
// device accepts no frame above its MTU. gro sets whether it merges received frames again, as
// drivers of real network cards do.
func (m Mode) apply(ns *NS, name string, gro bool) error {
	if m == ModeOff {
		return nil
	}
	err := setFeatures(ns, name, func(feature string) (set, on bool) {
		switch {
		// tx-tcp-segmentation, tx-udp-segmentation, tx-gso-list, tx-gre-csum-segmentation, ...
		case strings.HasPrefix(feature, "tx-") &&
			(strings.HasSuffix(feature, "-segmentation") || strings.Contains(feature, "-gso-")):
			return true, false
		case strings.HasPrefix(feature, "tx-checksum-"), feature == "rx-checksum":
			return m == ModeNIC, false
		case feature == "rx-gro":
			return true, gro
		}
		return false, false
	})
	if err != nil {
		return fmt.Errorf("%s: disable offloads of %s: %w", ns.Name, name, err)
	}
	return nil
}

// Features reports which offload features of a device are on, keyed by the long names of ethtool -k
// (tx-udp-segmentation).
func (ns *NS) Features(name string) (map[string]bool, error) {
	features := map[string]bool{}
	err := ns.Do(func() error {
		names, err := featureNames(name)
		if err != nil {
			return err
		}
		blocks := (len(names) + featureBlock - 1) / featureBlock
		request := make([]byte, featuresHeader+blocks*getBlockBytes)
		binary.NativeEndian.PutUint32(request, unix.ETHTOOL_GFEATURES)
		binary.NativeEndian.PutUint32(request[4:], uint32(blocks))
		if err := ethtool(name, request); err != nil {
			return err
		}
		for i, feature := range names {
			active := request[featuresHeader+i/featureBlock*getBlockBytes+8:]
			features[feature] = binary.NativeEndian.Uint32(active)>>(i%featureBlock)&1 == 1
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read features of %s: %w", name, err)
	}
	return features, nil
}

// setFeatures calls want for each feature known to the kernel and changes those for which set is
// true. Features that the device cannot change stay as they are.
func setFeatures(ns *NS, name string, want func(feature string) (set, on bool)) error {
	return ns.Do(func() error {
		names, err := featureNames(name)
		if err != nil {
			return err
		}
		blocks := (len(names) + featureBlock - 1) / featureBlock
		request := make([]byte, featuresHeader+blocks*setBlockBytes)
		binary.NativeEndian.PutUint32(request, unix.ETHTOOL_SFEATURES)
		binary.NativeEndian.PutUint32(request[4:], uint32(blocks))
		for i, feature := range names {
			set, on := want(feature)
			if !set {
				continue
			}
			valid := request[featuresHeader+i/featureBlock*setBlockBytes:]
			bit := uint32(1) << (i % featureBlock)
			binary.NativeEndian.PutUint32(valid, binary.NativeEndian.Uint32(valid)|bit)
			if on {
				requested := valid[4:]
				binary.NativeEndian.PutUint32(requested, binary.NativeEndian.Uint32(requested)|bit)
			}
		}
		return ethtool(name, request)
	})
}

// featureNames lists the kernel's features in the order of their bits.
func featureNames(device string) ([]string, error) {
	info := make([]byte, 16+4) // cmd, reserved, mask, then one count per bit of the mask
	binary.NativeEndian.PutUint32(info, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<ethSSFeatures)
	if err := ethtool(device, info); err != nil {
		return nil, fmt.Errorf("count features: %w", err)
	}
	n := int(binary.NativeEndian.Uint32(info[16:]))
	request := make([]byte, stringsHeader+n*ethGStringLen)
	binary.NativeEndian.PutUint32(request, unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(request[4:], ethSSFeatures)
	binary.NativeEndian.PutUint32(request[8:], uint32(n))
	if err := ethtool(device, request); err != nil {
		return nil, fmt.Errorf("name features: %w", err)
	}
	names := make([]string, n)
	for i := range names {
		raw := request[stringsHeader+i*ethGStringLen:][:ethGStringLen]
		raw, _, _ = bytes.Cut(raw, []byte{0})
		names[i] = string(raw)
	}
	return names, nil
}

// ethtool sends one request about a device of the calling thread's namespace. The reply overwrites
// request.
func ethtool(device string, request []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	var ifreq struct {
		name [unix.IFNAMSIZ]byte
		data uintptr
		_    [40 - unix.IFNAMSIZ - unsafe.Sizeof(uintptr(0))]byte // sizeof(struct ifreq) is 40
	}
	if len(device) >= unix.IFNAMSIZ {
		return fmt.Errorf("device name %q is too long (at most %d bytes)", device, unix.IFNAMSIZ-1)
	}
	copy(ifreq.name[:], device)
	var pin runtime.Pinner
	pin.Pin(&request[0])
	defer pin.Unpin()
	ifreq.data = uintptr(unsafe.Pointer(&request[0]))
	// SFEATURES returns positive flags if some features are fixed, which is not an error.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return fmt.Errorf("ethtool ioctl %#x: %w", binary.NativeEndian.Uint32(request), errno)
	}
	return nil
}
