// Package deploy_test tests the manifests, units and images in this directory. A real API server
// must accept the manifests, and their service account must have exactly the permissions that the
// daemon needs. The containers, run in network namespaces as the manifests specify, must connect
// pods. Units and compose files are run as written, too.
//
// Tests that need a program beyond the Go toolchain are skipped with "NOT TESTED" if it is missing:
//
//	WEFT_TESTKUBE  path of the test control plane; .ci/kube/build builds it and prints the path
//	WEFT_CNI       directory with cnitool and the CNI plugins; .ci/kube/cni prints it
//	WEFT_FLANNELD  path of flannel's daemon
//	PATH           dockerd, docker, systemd-analyze
//
// docs/testing.md lists all variables.
package deploy_test
