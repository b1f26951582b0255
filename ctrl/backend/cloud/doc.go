// Package cloud keeps the route to the pods of this node in the route tables of a cloud, whose
// network then carries packets between the nodes' pods without a tunnel.
//
//	manager.go    the loop: wanted routes in, calls and status out
//	routes.go     have, want -> changes, pure
//	errors.go     what went wrong, and what helps
//	client.go     requests over HTTP, with limits
//	metadata.go   the clouds' metadata services
//	keys.go       keys of the config, the environment or the instance's role
//	aws.go gce.go ali.go tencent.go   one provider each
//	awskeys.go    where the keys for AWS come from
//
// The providers send the few requests that they need themselves. With the SDKs the stripped binary
// would grow by 1.7 MB (service/ec2), 9.3 MB (google.golang.org/api/compute/v1) and 1.4 MB (the
// core of alibaba-cloud-sdk-go), amd64, and the image would exceed its limit. The clients of the
// metadata services of AWS and GCE would add 0.5 and 0.1 MB. Only the signatures of AWS come from
// its SDK.
package cloud
