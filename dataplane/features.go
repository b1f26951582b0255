package dataplane

import (
	"slices"

	"weft/dataplane/feature"
	"weft/dataplane/poll"
)

// FeatureStatus is the status of one feature.
type FeatureStatus struct {
	Feature feature.Name
	Used    bool
	Reason  string // why it is not in use
}

// Status returns the status of every feature, in the order of feature.All.
func (e *Engine) Status() []FeatureStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []FeatureStatus
	for _, f := range feature.All() {
		s := FeatureStatus{Feature: f, Used: e.features[f] == nil}
		if !s.Used {
			s.Reason = e.features[f].Error()
		}
		all = append(all, s)
	}
	return all
}

// disabled reports whether the configuration disables the feature.
func (e *Engine) disabled(f feature.Name) bool {
	return slices.Contains(e.config.DisabledFeatures, f)
}

// probePriority sets the priority of workers that are created later.
func (e *Engine) probePriority() {
	if e.disabled(feature.Priority) {
		e.features[feature.Priority] = feature.ErrDisabled
		return
	}
	e.priority, e.features[feature.Priority] = poll.ProbePriority()
}

// shortenSlices makes the threads of the process preempt programs that use all the CPU time they
// get.
func (e *Engine) shortenSlices() {
	if e.disabled(feature.Slices) {
		e.features[feature.Slices] = feature.ErrDisabled
		return
	}
	e.features[feature.Slices] = poll.ShortenSlices()
}

// priorityLost records why workers can no longer raise their threads. Each worker calls it; only
// the first call counts.
func (e *Engine) priorityLost(reason error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.features[feature.Priority] == nil {
		e.features[feature.Priority] = reason
		e.log.Warn("feature no longer used", "feature", feature.Priority, "reason", reason)
	}
}
