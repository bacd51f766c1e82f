package sampleapp

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxSlow is how long /slow takes at most.
const maxSlow = 30 * time.Second

// slow answers after ms milliseconds, 0 to 30000.
func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.ParseUint(r.FormValue("ms"), 10, 32)
	wait := time.Duration(ms) * time.Millisecond
	if err != nil || wait > maxSlow {
		http.Error(w, fmt.Sprintf("want ms=0 to ms=%d", maxSlow.Milliseconds()), http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Milliseconds uint64 `json:"ms"`
		Node         string `json:"node"`
	}{ms, a.name})
}

// upload reads a body of any length and answers what arrived.
func (a *app) upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Bytes  int64  `json:"bytes"`
		SHA256 string `json:"sha256"`
		Node   string `json:"node"`
	}{n, hex.EncodeToString(hash.Sum(nil)), a.name})
}

// status answers with the status it is asked for, 200 to 599, to every method.
func (a *app) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "want a status from 200 to 599", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if code != http.StatusNoContent && code != http.StatusNotModified { // RFC 9110 §6.4.1: no content
		fmt.Fprintf(w, "%d %s from %s\n", code, http.StatusText(code), a.name)
	}
}
