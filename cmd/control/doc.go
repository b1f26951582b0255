// Package control is the API of the control socket: the paths, the types of the answers, and a
// client. The daemon serves it to operators on its node, with HTTP and JSON; package agent has the
// server.
//
// Paths begin with the version of the API. Within a version, fields and paths are only added.
package control

// DefaultSocket is the path of the control socket unless --control-socket sets another.
const DefaultSocket = "/run/weft/weftd.sock"

// Paths of the API.
const (
	StatusPath = "/v1/status" // answers with a Status
	// MetricsPath answers as /metrics of the health server does.
	MetricsPath = "/v1/metrics"
	// CapturePath takes the values of a Capture and answers with a pcapng file that grows.
	CapturePath = "/v1/capture"
	TopPath     = "/v1/top" // answers with a Top per second, without end
	// ClusterPath answers with a Cluster: the daemon asks the other nodes. Where the status page is
	// served, the health server has it, too.
	ClusterPath = "/v1/cluster"
	// TracePath takes the values of a Watch and answers with Sightings whenever they change, until
	// the client goes. The health server has it, for the clients of --metrics.
	TracePath = "/v1/trace"
	// RowPath answers with a Row. The health server has it, for the clients of --metrics.
	RowPath = "/v1/row"
)
