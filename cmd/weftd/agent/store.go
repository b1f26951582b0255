package agent

import (
	"fmt"

	"weft/lease"
	"weft/lease/etcd"
	"weft/lease/file"
)

// store is a lease store that must be closed.
type store interface {
	lease.Store
	Close() error
}

// openStore opens the store that the flags select.
func (d *daemon) openStore() (store, error) {
	if d.cfg.Lease.File != "" {
		s, err := file.Open(d.cfg.Lease.File, d.log)
		if err != nil {
			return nil, fmt.Errorf("--lease-file: %w", err)
		}
		return s, nil
	}
	if d.cfg.Lease.Kube.Enabled {
		s, err := d.openKube()
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	e := d.cfg.Lease.Etcd
	s, err := etcd.Open(etcd.Config{
		Endpoints: e.Endpoints,
		Prefix:    e.Prefix,
		KeyFile:   e.KeyFile,
		CertFile:  e.CertFile,
		CAFile:    e.CAFile,
		Username:  e.Username,
		Password:  e.Password,
		Instance:  d.cfg.Node.SubnetFile,
		Log:       d.log,
	})
	if err != nil {
		return nil, err // not s: a nil *etcd.Store in the interface would not be nil
	}
	return s, nil
}
