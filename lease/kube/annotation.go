package kube

import (
	"fmt"
	"regexp"
	"strings"
)

// annotations are the full names of the annotations that are read from and written to a Node.
type annotations struct {
	backendType, managed string
	fastPath             string // not flannel's: lease.Attrs.FastPath
	v4, v6               familyAnnotations
}

// familyAnnotations are the names of the annotations of one address family.
type familyAnnotations struct {
	data, publicIP, overwrite, nodePublicIP string
}

// namePrefix matches the annotation prefixes that flannel accepts: a domain of at least two labels,
// a slash, and optionally the beginning of the name up to a dash.
const namePrefix = `^([a-z0-9_-]+\.)+[a-z0-9_-]+/([a-z0-9_-]+-)?$`

// newAnnotations returns the names with the given prefix (--kube-annotation-prefix).
func newAnnotations(prefix string) (annotations, error) {
	p := prefix
	switch {
	case !strings.Contains(p, "/"):
		p += "/"
	case !strings.HasSuffix(p, "/") && !strings.HasSuffix(p, "-"):
		p += "-"
	}
	if !regexp.MustCompile(namePrefix).MatchString(p) {
		return annotations{}, fmt.Errorf("annotation prefix %q: want a lower-case domain "+
			"such as example.com, optionally with the beginning of a name "+
			"such as example.com/net", prefix)
	}
	return annotations{
		backendType: p + "backend-type",
		managed:     p + "kube-subnet-manager",
		fastPath:    p + "weft-fast-path",
		v4: familyAnnotations{
			data:         p + "backend-data",
			publicIP:     p + "public-ip",
			overwrite:    p + "public-ip-overwrite",
			nodePublicIP: p + "node-public-ip",
		},
		v6: familyAnnotations{
			data:         p + "backend-v6-data",
			publicIP:     p + "public-ipv6",
			overwrite:    p + "public-ipv6-overwrite",
			nodePublicIP: p + "node-public-ipv6",
		},
	}, nil
}

// all returns all names.
func (a annotations) all() []string {
	names := []string{a.backendType, a.managed, a.fastPath}
	for _, f := range []familyAnnotations{a.v4, a.v6} {
		names = append(names, f.data, f.publicIP, f.overwrite, f.nodePublicIP)
	}
	return names
}
