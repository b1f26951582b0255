package main

import (
	"errors"

	"weft/lease"
	"weft/lease/etcd"
)

// store is a lease store that has to be closed.
type store interface {
	lease.Store
	Close() error
}

// openStore opens the store that the flags name.
func (d *weftd) openStore() (store, error) {
	if d.cfg.leaseFile != "" {
		return nil, errors.New("--lease-file: not supported")
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
