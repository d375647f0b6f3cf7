package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"time"
)

// sabotages break the store's promises on purpose. Each names the step that must notice.
var sabotages = map[string]string{
	"delete":   "every acknowledged write is in the API",   // an acknowledged object is deleted in the store
	"rewrite":  "every acknowledged write is in the API",   // an acknowledged object gets another's content
	"rollback": "every acknowledged write is in the store", // the store comes back from a kill with old data
	"outage":   "no storage error in the apiservers' logs", // the store is down at a time when it should not
}

func sabotageNames() string {
	var names []string
	for name := range sabotages {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

// runSelfCheck shows that the scenario can fail, and fails where it should.
func runSelfCheck(ctx context.Context, o options) (passed, failed int) {
	whole := &report{started: time.Now()}
	for _, name := range strings.Split(sabotageNames(), ", ") {
		fmt.Printf("-- sabotage %s\n", name)
		run := o
		run.selfCheck, run.sabotage, run.kills = false, name, 2
		r := runOnce(ctx, run)
		whole.step("sabotage "+name+" is noticed", func() (string, error) {
			for _, failure := range r.failures {
				if strings.HasPrefix(failure, sabotages[name]+": ") {
					return "", nil
				}
			}
			return "", fmt.Errorf("%q did not fail", sabotages[name])
		})
	}
	return whole.passed, len(whole.failures)
}

// spoilAfterLoad changes acknowledged objects behind the apiserver's back.
func (s *scenario) spoilAfterLoad(l *ledger) error {
	if s.sabotage != "delete" && s.sabotage != "rewrite" {
		return nil
	}
	var keys []string
	for _, slot := range l.slots {
		if slot.content != "" && !slot.retired {
			keys = append(keys, "/registry/configmaps/"+loadNamespace+"/"+slot.name)
		}
	}
	if len(keys) < 2 {
		return errors.New("no objects to spoil")
	}
	if s.sabotage == "delete" {
		_, err := s.etcd.Delete(s.ctx, keys[0])
		return err
	}
	other, err := s.etcd.Get(s.ctx, keys[1])
	if err != nil {
		return err
	}
	_, err = s.etcd.Put(s.ctx, keys[0], string(other.Kvs[0].Value))
	return err
}

// spoilAtKill gives the store, at the second kill, the folder it had at the first.
func (s *scenario) spoilAtKill(round int) error {
	if s.sabotage != "rollback" {
		return nil
	}
	saved := s.store.dataDir + ".saved"
	if round == 0 {
		return exec.Command("cp", "-a", s.store.dataDir, saved).Run()
	}
	if err := os.RemoveAll(s.store.dataDir); err != nil {
		return err
	}
	return os.Rename(saved, s.store.dataDir)
}

// spoilOutage kills the store at a time that is not noted as an outage.
func (s *scenario) spoilOutage(ctx context.Context, servers []*apiserver) error {
	s.store.process.kill()
	if _, err := s.store.start(ctx); err != nil {
		return err
	}
	return s.recovered(servers...)
}
