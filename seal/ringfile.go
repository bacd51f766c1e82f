package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// maxKeys bounds a ring. Rotation keeps a few old keys for as long as sessions live.
	maxKeys = 64
	// maxRetired bounds the list of keys that were taken out of use. It is of use for as
	// long as a session can live.
	maxRetired = 512
)

// ErrNoFile: the file that should hold the key ring does not exist.
var ErrNoFile = errors.New("seal: no key ring file")

// ringFile is the JSON form: the newest key first.
type ringFile struct {
	Version  int           `json:"version"`
	Keys     []keyFile     `json:"keys"`
	Retired  []retiredFile `json:"retired,omitempty"`
	IndexKey string        `json:"index_key"` // 32 bytes, unpadded base64url
}

type keyFile struct {
	Key        string    `json:"key"` // 32 bytes, unpadded base64url
	Created    time.Time `json:"created"`
	ActivateAt time.Time `json:"activate_at,omitzero"` // from when it may seal
}

type retiredFile struct {
	Kid string    `json:"kid"` // lower-case hex
	At  time.Time `json:"at"`
}

// ParseRing reads the JSON form of a ring. The oldest key seals until somebody promotes
// another one. No error shows a key.
func ParseRing(data []byte) (*Ring, error) {
	const op = "seal: key ring"
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var f ringFile
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("%s: %s", op, whyNoRing(data, err, f))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: text after the end", op)
	}
	switch {
	case f.Version != 1:
		return nil, fmt.Errorf("%s: version is %d, this coatcheck reads version 1", op, f.Version)
	case len(f.Keys) == 0:
		return nil, fmt.Errorf("%s: no keys", op)
	case len(f.Keys) > maxKeys:
		return nil, fmt.Errorf("%s: %d keys, at most %d can be kept", op, len(f.Keys), maxKeys)
	case len(f.Retired) > maxRetired:
		return nil, fmt.Errorf("%s: %d retired keys, at most %d can be kept", op, len(f.Retired), maxRetired)
	}
	var retired []retiredKey
	isRetired := func(id kid) bool {
		return slices.ContainsFunc(retired, func(k retiredKey) bool { return k.kid == id })
	}
	for i, rf := range f.Retired {
		id, err := hex.DecodeString(rf.Kid)
		if err != nil || len(id) != kidSize || hex.EncodeToString(id) != rf.Kid {
			return nil, fmt.Errorf("%s: retired[%d].kid is not the ID of a key: %d hexadecimal digits", op, i, 2*kidSize)
		}
		if isRetired(kid(id)) {
			return nil, fmt.Errorf("%s: retired[%d] stands there twice", op, i)
		}
		retired = append(retired, retiredKey{kid(id), rf.At.UTC()}) // so that equal times compare equal
	}
	var keys []key
	for i, kf := range f.Keys {
		secret, ok := decodeBase64(kf.Key)
		if !ok || len(secret) != keySize {
			return nil, fmt.Errorf("%s: keys[%d] is not %d bytes in unpadded base64url", op, i, keySize)
		}
		if bytes.Equal(secret, make([]byte, keySize)) {
			return nil, fmt.Errorf("%s: keys[%d] is all zeros", op, i)
		}
		k := key{fingerprint(secret), [keySize]byte(secret), kf.Created, kf.ActivateAt}
		switch {
		case slices.ContainsFunc(keys, func(other key) bool { return other.kid == k.kid }):
			return nil, fmt.Errorf("%s: keys[%d] stands there twice", op, i)
		case isRetired(k.kid):
			return nil, fmt.Errorf("%s: keys[%d], %s, is retired too: it can only be one of the two", op, i, k.kid)
		}
		keys = append(keys, k)
	}
	if f.IndexKey == "" {
		return nil, fmt.Errorf("%s: it has no index_key: coatcheck key new makes a ring that has one, and with a new ring everybody signs in again: see docs/operations.md, The key ring", op)
	}
	index, ok := decodeBase64(f.IndexKey)
	if !ok || len(index) != keySize {
		return nil, fmt.Errorf("%s: index_key is not %d bytes in unpadded base64url", op, keySize)
	}
	if bytes.Equal(index, make([]byte, keySize)) {
		return nil, fmt.Errorf("%s: index_key is all zeros", op)
	}
	r := &Ring{index: [keySize]byte(index)}
	r.keys.Store(newKeySet(keys, retired))
	return r, nil
}

// whyNoRing says why data was not decoded, for err, in words of its own: encoding/json may
// quote what it read. f is as far as it got.
func whyNoRing(data []byte, err error, f ringFile) string {
	const want = `want {"version": 1, "keys": [{"key": "…", "created": "…"}], "index_key": "…"}`
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return "it is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("it ends too early, after %d bytes: was it copied only in part?", len(data))
	case errors.As(err, &syntax):
		before := data[:max(0, syntax.Offset-1)]
		line, column := 1+bytes.Count(before, []byte("\n")), len(before)-bytes.LastIndexByte(before, '\n')
		return fmt.Sprintf("it is not JSON, from line %d, column %d on: %s", line, column, want)
	case errors.As(err, &wrong) && wrong.Field != "": // it is named by the fields of ringFile
		return fmt.Sprintf("it has a wrong type at %s: %s", wrong.Field, want)
	case errors.As(err, &wrong):
		return "it is another kind of JSON: " + want
	case !strings.HasPrefix(err.Error(), "json: unknown field"): // a time's
		return "it has a time that is none: one looks like 2026-01-31T12:00:00Z"
	case f.IndexKey == "":
		return "it has no index_key, but a field that no key ring has: is its name misspelled?"
	default:
		return "it has a field that no key ring has: " + want
	}
}

// ReadRing reads a ring from a file. It returns an error that wraps ErrNoFile if the
// file does not exist.
func ReadRing(file string) (*Ring, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoFile, file)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	r, err := ParseRing(data)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, file)
	}
	return r, nil
}

// Marshal returns the JSON form of the ring, which holds its secrets.
func (r *Ring) Marshal() []byte {
	f := ringFile{Version: 1, IndexKey: base64.RawURLEncoding.EncodeToString(r.index[:])}
	s := r.keys.Load()
	for _, k := range s.keys {
		f.Keys = append(f.Keys, keyFile{
			Key:        base64.RawURLEncoding.EncodeToString(k.secret[:]),
			Created:    k.created,
			ActivateAt: k.activate,
		})
	}
	for _, k := range s.retired {
		f.Retired = append(f.Retired, retiredFile{k.kid.String(), k.at})
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		panic(err) // strings, and times that were read from JSON or made here, always marshal
	}
	return append(data, '\n')
}

// WriteNew writes the ring to a file that must not exist yet, readable by its owner
// alone. The file appears whole or not at all, so that a second process that starts
// at the same moment never reads half a ring.
func (r *Ring) WriteNew(file string) error {
	return r.write(file, func(tmp *os.File) error {
		return os.Link(tmp.Name(), file) // fails if the file exists
	})
}

// Write writes the ring over a file that exists, whose owner and permissions stay. Whoever
// reads it meanwhile reads the old ring or the new one, whole. A symbolic link stays one.
func (r *Ring) Write(file string) error { return r.overwrite(file, os.Rename) }

// TryWrite does what Write does, but for the last step: the file stays as it is. It tells
// beforehand whether Write would fail, as far as anybody can.
func (r *Ring) TryWrite(file string) error {
	return r.overwrite(file, func(_, _ string) error { return nil })
}

// overwrite has a new file with the ring take the place of a file that exists.
func (r *Ring) overwrite(file string, rename func(from, to string) error) error {
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return fmt.Errorf("seal: write key ring: %w", err)
	}
	return r.write(file, func(tmp *os.File) error {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		return errors.Join(giveTo(tmp.Name(), info), os.Chmod(tmp.Name(), info.Mode().Perm()), rename(tmp.Name(), file))
	})
}

// write writes the ring to a new file in the same folder, and lets place put it there.
func (r *Ring) write(file string, place func(tmp *os.File) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".keys-*") // mode 0600
	if wrong := (*os.PathError)(nil); errors.As(err, &wrong) {
		err = wrong.Err // the path is that of a file that does not matter
	}
	if err != nil {
		return fmt.Errorf("seal: write key ring: a file in the folder %s: %w", filepath.Dir(file), err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(r.Marshal())
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = place(tmp)
	}
	if err != nil {
		return fmt.Errorf("seal: write key ring: %w", err)
	}
	return nil
}
