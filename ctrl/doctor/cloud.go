package doctor

import "fmt"

func cloudChecks() []check {
	return []check{{name: "cloud-route-missing", needs: []source{fromDaemon}, find: findNoCloudRoute}}
}

func findNoCloudRoute(f *Facts) []Finding {
	c := f.Daemon.Cloud
	if c == nil || c.InPlace && c.Error == "" {
		return nil
	}
	finding := Finding{
		Evidence: fmt.Sprintf("%s: no route to the pods of this node in the cloud's route table", c.Provider),
		Cause:    "the daemon has not finished its first calls of the cloud's API",
		Remedy:   "wait some seconds, then weft status",
	}
	if c.InPlace {
		finding.Evidence = fmt.Sprintf("%s: the route to the pods of this node can no longer be checked", c.Provider)
	}
	if c.Error != "" {
		finding.Cause = c.Error
		finding.Remedy = "docs/backends.md has the permissions, quotas and metadata that the provider needs"
	}
	return []Finding{finding}
}
