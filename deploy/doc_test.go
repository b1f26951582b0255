// Package deploy_test holds what is shipped in this folder to its word. A real API server accepts the manifests, their service
// account may do what the daemon needs and nothing else, and the containers, run as they are written in namespaces of this
// machine, make a network for pods. Units and compose files are run as they are written too.
//
// What does not come with Go is found by environment variables or in PATH; tests that miss one are skipped and say so:
//
//	WEFT_TESTKUBE   the control plane: .ci/kube/build prints its path
//	WEFT_CNI       a folder with cnitool and the CNI plugins: .ci/kube/cni prints it
//	WEFT_FLANNELD  flannel's own daemon
//	dockerd, docker, systemd-analyze
package deploy_test
