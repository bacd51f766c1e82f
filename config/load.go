package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// maxFile bounds a configuration file, in bytes. maxSecret bounds a file that holds
// one secret.
const (
	maxFile   = 256 << 10
	maxSecret = 64 << 10
)

// Load reads the configuration file at path and the secrets it names. Its error is
// of type [Errors].
func Load(path string) (*Config, error) { return LoadWithKeys(path, nil) }

// LoadWithKeys is Load, and has check say what is wrong with the key ring: that is a problem
// among the others. The rest of the configuration that check is given may be wrong.
func LoadWithKeys(path string, check func(*Config) error) (*Config, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, Errors{{File: path, Message: reason(err)}}
	}
	v, err := parse(path, data)
	if err != nil {
		return nil, err
	}
	v.host(os.Hostname)
	v.secrets()
	v.certificates()
	if check != nil {
		v.keyRing(check)
	}
	return v.result()
}

// parse reads a configuration from data, without touching a file, the environment or the
// machine. name stands in messages, and relative paths are resolved against its folder.
func parse(name string, data []byte) (*validator, error) {
	src := newSource(name, data)
	root, err := src.parse(data)
	if err != nil {
		return nil, err
	}
	v := &validator{decoder: newDecoder(src), cfg: new(Config)}
	v.document(root, v.cfg)
	v.validate()
	return v, nil
}

func (v *validator) result() (*Config, error) {
	if len(v.problems) > 0 {
		return nil, v.src.errors(v.problems)
	}
	v.warn()
	return v.cfg, nil
}

// host fills in what the file leaves to the machine, which hostname asks for its name.
func (v *validator) host(hostname func() (string, error)) {
	if v.given("node") {
		return
	}
	name, err := hostname()
	if err != nil || !nodeName.MatchString(name) {
		v.refuse("node", "is required here, because this machine's name can't be used: it %s", wrongNodeName)
		return
	}
	v.cfg.Node, v.cfg.namedByHost = name, true
}

// secrets fills the fields of type coatcheck.Secret from what the file names. The key
// ring is for others to read.
func (v *validator) secrets() {
	v.exposed("keys.file", v.cfg.Keys.File)
	switch s := &v.cfg.Store; s.Driver {
	case DriverRedis:
		r := &s.Redis
		r.Password = v.secret("store.redis.password", r.PasswordFile, r.PasswordEnv)
		r.Sentinel.Password = v.secret("store.redis.sentinel.password", r.Sentinel.PasswordFile, r.Sentinel.PasswordEnv)
	case DriverPostgres:
		p := &s.Postgres
		p.Password = v.secret("store.postgres.password", p.PasswordFile, p.PasswordEnv)
	}
	for i := range v.cfg.Providers {
		p := &v.cfg.Providers[i]
		p.ClientSecret = v.secret(element("providers", i)+".client_secret", p.ClientSecretFile, p.ClientSecretEnv)
	}
}

// keyRing has check judge the key ring, if one is named.
func (v *validator) keyRing(check func(*Config) error) {
	k := v.cfg.Keys
	path := "keys.file"
	if k.Env != "" {
		path = "keys.env"
	}
	if k == (Keys{}) || v.refused("keys.file") || v.refused("keys.env") {
		return
	}
	if err := check(v.cfg); err != nil {
		text := err.Error()
		if k.File != "" {
			text = strings.ReplaceAll(text, k.File, v.src.hide(k.File))
		}
		v.refuse(path, "%s", text)
	}
}

// secret reads one secret. key is the key that a secret in the file itself would
// have; those of its two sources are key_file and key_env.
func (v *validator) secret(key, file, env string) coatcheck.Secret {
	if v.refused(key+"_file") || v.refused(key+"_env") {
		return ""
	}
	switch {
	case file != "":
		text, err := v.secretFile(key+"_file", file)
		if err != nil {
			// The path shows where a relative one was looked for.
			v.refuse(key+"_file", "%s: %s", v.src.hide(file), reason(err))
			return ""
		}
		return v.secretText(key+"_file", "the file", text)
	case env != "":
		text, ok := os.LookupEnv(env)
		if !ok {
			v.refuse(key+"_env", "the environment variable is not set")
			return ""
		}
		return v.secretText(key+"_env", "the environment variable", text)
	default:
		return ""
	}
}

func (v *validator) secretFile(key, file string) (string, error) {
	data, err := readFile(file, maxSecret)
	if err != nil {
		return "", err
	}
	v.exposed(key, file)
	// Editors and echo end a file with a newline that is no part of the secret.
	return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"), nil
}

// exposed notes that a file with a secret is open to strangers.
func (v *validator) exposed(key, file string) {
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o004 != 0 {
		v.note("%s: every user of this machine can read the file: chmod o-r", key)
	}
}

func (v *validator) secretText(key, where, text string) coatcheck.Secret {
	if text == "" {
		v.refuse(key, "%s is empty", where)
		return ""
	}
	if strings.ContainsFunc(text, isControl) {
		v.refuse(key, "%s holds more than one line, or a control character", where)
		return ""
	}
	return coatcheck.Secret(text)
}

// errTooLarge and errNotRegular are what readFile adds to the reasons of the system.
var (
	errTooLarge   = errors.New("the file is too large")
	errNotRegular = errors.New("not a regular file")
)

// readFile reads a regular file of at most limit bytes: neither a device without
// end nor a pipe without writer can stop a start.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errTooLarge
	}
	return data, nil
}

// reason returns what the system says, without the path that the message has anyway.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// resolve returns the path of a file that the configuration at name mentions.
func resolve(name, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(name), path)
}
