package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// sabotages break the store's promises on purpose. Each names the step that must notice.
var sabotages = map[string]string{
	"delete":      inAPIStep,        // an acknowledged object is deleted in the store
	"rewrite":     inAPIStep,        // an acknowledged object gets another's content
	"rollback":    inStoreStep,      // the store comes back from a kill with the data of an earlier one
	"outage":      logStep,          // the store is down at a time when it should not be
	"intruder":    watchChangesStep, // an event comes that no acknowledged write explains
	"no-progress": idleBookmarkStep, // the store sends no progress notifications
}

func sabotageNames() string {
	return strings.Join(slices.Sorted(maps.Keys(sabotages)), ", ")
}

// runSelfCheck shows that the scenario can fail, and fails where it should.
func runSelfCheck(ctx context.Context, o options) (passed, failed int) {
	whole := &report{started: time.Now()}
	for _, name := range slices.Sorted(maps.Keys(sabotages)) {
		if name == "rollback" && o.members > 1 {
			continue // what one member lost the others have
		}
		fmt.Printf("-- sabotage %s\n", name)
		run := o
		run.selfCheck, run.sabotage, run.kills = false, name, 2
		r := runOnce(ctx, run)
		noticed := whole.step("sabotage "+name+" is noticed", func() (string, error) {
			for _, failure := range r.failures {
				if strings.HasPrefix(failure, sabotages[name]+": ") {
					return "", nil
				}
			}
			return "", fmt.Errorf("%q did not fail", sabotages[name])
		})
		r.cleanUp(!noticed || o.keep)
	}
	return whole.passed, len(whole.failures)
}

// runSpoiled runs what the sabotage needs and no more.
func (s *scenario) runSpoiled() {
	switch s.sabotage {
	case "intruder", "no-progress":
		if !s.step(createObjectsStep, s.createObjects) {
			return
		}
		if s.sabotage == "no-progress" {
			s.step(idleBookmarkStep, s.idleBookmark)
			return
		}
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		go s.intrude(ctx)
		s.step(watchChangesStep, s.watchChanges)
	default:
		_ = s.loadPhase() && s.afterwards()
	}
}

// intrude writes an object again and again, past the apiserver.
func (s *scenario) intrude(ctx context.Context) {
	const prefix = "/registry/configmaps/red/item-00"
	for ctx.Err() == nil {
		if value, err := s.etcd.Get(ctx, prefix+"1"); err == nil && len(value.Kvs) == 1 {
			_, _ = s.etcd.Put(ctx, prefix+"1", string(value.Kvs[0].Value))
		}
		pause(ctx, 100*time.Millisecond)
	}
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
	dataDir := s.store.members[0].dataDir
	saved := dataDir + ".saved"
	if round == 0 {
		return exec.Command("cp", "-a", dataDir, saved).Run()
	}
	if err := os.RemoveAll(dataDir); err != nil {
		return err
	}
	return os.Rename(saved, dataDir)
}

// spoilOutage kills the store at a time that is not excused.
func (s *scenario) spoilOutage(ctx context.Context, servers []*apiserver) error {
	killed := time.Now()
	s.store.kill()
	if _, err := s.store.start(ctx); err != nil {
		return err
	}
	return s.recovered(killed, servers...)
}
