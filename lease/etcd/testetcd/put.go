package testetcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Put writes a key through the embedded server, like etcdctl put.
func (s *Server) Put(key, value string) error {
	if s.etcd == nil {
		return errors.New("put into etcd: server is not running")
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	r := &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}
	if _, err := s.etcd.Server.Put(ctx, r); err != nil {
		return fmt.Errorf("put %s into etcd: %w", key, err)
	}
	return nil
}

// Change writes and deletes keys in one transaction, in which no key may occur twice. etcd limits
// the number of keys to 128.
func (s *Server) Change(put map[string]string, remove []string) error {
	if s.etcd == nil {
		return errors.New("change keys of etcd: server is not running")
	}
	var r etcdserverpb.TxnRequest
	for k, v := range put {
		r.Success = append(r.Success, &etcdserverpb.RequestOp{
			Request: &etcdserverpb.RequestOp_RequestPut{
				RequestPut: &etcdserverpb.PutRequest{Key: []byte(k), Value: []byte(v)}}})
	}
	for _, k := range remove {
		r.Success = append(r.Success, &etcdserverpb.RequestOp{
			Request: &etcdserverpb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(k)}}})
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if _, err := s.etcd.Server.Txn(ctx, &r); err != nil {
		return fmt.Errorf("change keys of etcd: %w", err)
	}
	return nil
}
