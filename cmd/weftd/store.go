package main

import (
	"fmt"

	"weft/lease"
	"weft/lease/etcd"
	"weft/lease/file"
)

// store is a lease store that has to be closed.
type store interface {
	lease.Store
	Close() error
}

// openStore opens the store that the flags name.
func (d *weftd) openStore() (store, error) {
	if d.cfg.leaseFile != "" {
		s, err := file.Open(d.cfg.leaseFile, d.log)
		if err != nil {
			return nil, fmt.Errorf("--lease-file: %w", err)
		}
		return s, nil
	}
	if d.cfg.kube.subnetMgr {
		s, err := d.openKube()
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	e := d.cfg.etcd
	s, err := etcd.Open(etcd.Config{
		Endpoints: e.endpoints,
		Prefix:    e.prefix,
		KeyFile:   e.keyFile,
		CertFile:  e.certFile,
		CAFile:    e.caFile,
		Username:  e.username,
		Password:  e.password,
		Instance:  d.cfg.subnetFile,
		Log:       d.log,
	})
	if err != nil {
		return nil, err // not s, which would be a store that is not nil
	}
	return s, nil
}
