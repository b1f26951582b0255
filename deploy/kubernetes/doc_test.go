// Package kubernetes_test holds the shipped manifests to their word: a real API server accepts them, their service account
// may do what the daemon needs and nothing else, and the containers, run as they are written in namespaces of this machine,
// make a network for pods.
//
// What is not in a Go installation is found by environment variables; tests that miss one are skipped and say so:
//
//	WEFT_KUBEBOX   the control plane: .ci/kube/build prints its path
//	WEFT_CNI       a folder with cnitool and the CNI plugins: .ci/kube/cni prints it
//	WEFT_FLANNELD  flannel's own daemon
package kubernetes_test
