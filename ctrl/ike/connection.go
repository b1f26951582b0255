package ike

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/strongswan/govici/vici"

	"weft/ctrl"
)

// Settings of all connections, which are flannel's unless noted.
const (
	ikeProposal = "aes256-sha256-modp4096"
	rekeyTime   = "1h"
	// replayWindow is how many packets late one may arrive. The kernel encrypts, decrypts and
	// forwards on several CPUs, which reorders more than the 32 packets of charon's default,
	// flannel's; the rest would be dropped. A node sets its own.
	replayWindow = "1024"
	// dpdDelay is the silence after which charon asks whether the other node is still there.
	// flannel never asks.
	dpdDelay = "30s"
)

// The messages of VICI's commands (README.md of strongSwan's plugin vici).
type (
	keyMessage struct {
		ID   string `vici:"id"`
		Type string `vici:"type"`
		Data string `vici:"data"`
	}
	authMessage struct {
		Auth string `vici:"auth"`
	}
	childMessage struct {
		LocalTS      []string `vici:"local_ts"`
		RemoteTS     []string `vici:"remote_ts"`
		ESPProposals []string `vici:"esp_proposals"`
		Mode         string   `vici:"mode"`
		ReqID        string   `vici:"reqid"`
		RekeyTime    string   `vici:"rekey_time"`
		ReplayWindow string   `vici:"replay_window"`
		Policies     bool     `vici:"policies"`
		DPDAction    string   `vici:"dpd_action"`
	}
	connMessage struct {
		Version     string                  `vici:"version"`
		LocalAddrs  []string                `vici:"local_addrs"`
		RemoteAddrs []string                `vici:"remote_addrs"`
		Proposals   []string                `vici:"proposals"`
		Encap       bool                    `vici:"encap"`
		KeyingTries string                  `vici:"keyingtries"`
		DPDDelay    string                  `vici:"dpd_delay"`
		Local       authMessage             `vici:"local"`
		Remote      authMessage             `vici:"remote"`
		Children    map[string]childMessage `vici:"children"`
	}
	terminateMessage struct {
		IKE     string `vici:"ike"`
		Force   bool   `vici:"force"`
		Timeout string `vici:"timeout"`
	}
	initiateMessage struct {
		IKE     string `vici:"ike"`
		Child   string `vici:"child"`
		Timeout string `vici:"timeout"`
	}
)

// doNotWait is the timeout of a command that returns before its work is done.
const doNotWait = "-1"

// callTime limits one command.
const callTime = 10 * time.Second

// connName returns the name of an association's connection, which is flannel's.
func connName(a ctrl.Association) string {
	return fmt.Sprintf("%v-%v-%v-%v", a.Local, a.LocalNet, a.RemoteNet, a.Remote)
}

// childName returns the name of a connection's child, which is flannel's.
func childName(a ctrl.Association) string { return fmt.Sprintf("%v-%v", a.LocalNet, a.RemoteNet) }

// client sends commands to charon.
type client struct {
	session *vici.Session
	sas     chan vici.Event // answers of list-sas
}

// maxAssociations bounds the answers of list-sas that are kept. At most two per node and family are
// usual.
const maxAssociations = 1 << 14

// newClient opens a session.
func newClient() (client, error) {
	s, err := vici.NewSession(vici.WithAddr("unix", socketPath))
	return client{session: s, sas: make(chan vici.Event, maxAssociations)}, err
}

// listen makes list possible. govici's CallStreaming, for commands that answer with events, would
// take the end for one of several events that wait, and then the rest for the next answer.
func (c client) listen() error {
	c.session.NotifyEvents(c.sas)
	return c.session.Subscribe("list-sa")
}

// call sends a command with the fields of the struct message.
func (c client) call(ctx context.Context, command string, message any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	m, err := vici.MarshalMessage(message)
	if err == nil {
		_, err = c.session.Call(ctx, command, m)
	}
	if err != nil {
		return fmt.Errorf("charon: %s: %w", command, err)
	}
	return nil
}

// loadKey loads the key of all nodes.
func (c client) loadKey(ctx context.Context, psk ctrl.Secret) error {
	return c.call(ctx, "load-shared", keyMessage{ID: "weft", Type: "IKE", Data: string(psk)})
}

// load loads the connection of an association. Nothing is started.
func (c client) load(ctx context.Context, a ctrl.Association, s ctrl.IKE) error {
	psk := authMessage{Auth: "psk"}
	return c.call(ctx, "load-conn", map[string]connMessage{connName(a): {
		Version: "2", LocalAddrs: []string{a.Local.String()},
		RemoteAddrs: []string{a.Remote.String()}, Proposals: []string{ikeProposal},
		Encap: s.UDPEncap, KeyingTries: "1", DPDDelay: dpdDelay, Local: psk, Remote: psk,
		Children: map[string]childMessage{childName(a): {
			LocalTS: []string{a.LocalNet.String()}, RemoteTS: []string{a.RemoteNet.String()},
			ESPProposals: []string{s.ESPProposal}, Mode: "tunnel",
			ReqID: strconv.Itoa(ctrl.PolicyReqID), RekeyTime: rekeyTime,
			ReplayWindow: replayWindow, DPDAction: "restart",
		}},
	}})
}

// unload ends an association and removes its connection.
func (c client) unload(ctx context.Context, a ctrl.Association) error {
	if err := c.call(ctx, "unload-conn", map[string]string{"name": connName(a)}); err != nil {
		return err
	}
	// It fails if there is nothing to end.
	_ = c.call(ctx, "terminate",
		terminateMessage{IKE: connName(a), Force: true, Timeout: doNotWait})
	return nil
}

// initiate starts the negotiation of an association.
func (c client) initiate(ctx context.Context, a ctrl.Association) error {
	return c.call(ctx, "initiate",
		initiateMessage{IKE: connName(a), Child: childName(a), Timeout: doNotWait})
}

// Parts of the answers of list-sas.
type (
	saMessage struct {
		State       string                    `vici:"state"`
		Established int                       `vici:"established"` // seconds ago
		Children    map[string]childSAMessage `vici:"child-sas"`
	}
	childSAMessage struct {
		State       string `vici:"state"`
		Encap       bool   `vici:"encap"`
		InstallTime int    `vici:"install-time"` // seconds ago
	}
)

// found is the state of a connection in charon.
type found struct {
	connecting  bool
	installed   bool
	established time.Time // of the oldest IKE association
	encap       bool
}

// list returns the state of the connections by name.
func (c client) list(ctx context.Context) (map[string]found, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	all := map[string]found{}
	_, err := c.session.Call(ctx, "list-sas", nil)
	for len(c.sas) > 0 && err == nil {
		sas := map[string]saMessage{}
		e, open := <-c.sas
		if !open {
			break // the next command fails
		}
		err = vici.UnmarshalMessage(e.Message, sas)
		for name, sa := range sas {
			all[name] = all[name].with(sa, time.Now())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("charon: list-sas: %w", err)
	}
	return all, nil
}

// with adds one of a connection's IKE associations.
func (f found) with(sa saMessage, now time.Time) found {
	f.connecting = f.connecting || sa.State == "CONNECTING" || sa.State == "CREATED"
	for _, child := range sa.Children {
		switch child.State {
		case "INSTALLED", "UPDATING", "REKEYING", "REKEYED":
			since := now.Add(-time.Duration(sa.Established) * time.Second)
			if !f.installed || since.Before(f.established) {
				f.established = since
			}
			f.installed, f.encap = true, child.Encap
		case "CREATED", "INSTALLING":
			f.connecting = true
		}
	}
	return f
}

// version returns the version of charon.
func (c client) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	m, err := c.session.Call(ctx, "version", nil)
	if err != nil {
		return "", fmt.Errorf("charon: version: %w", err)
	}
	v, _ := m.Get("version").(string)
	return v, nil
}
