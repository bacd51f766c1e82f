package testenv

import "testing"

func TestNginxServes(t *testing.T) {
	addr := Loopback(FreePort(t))
	p := StartNginx(t, addr, `
events {}
http {
	access_log off;
	client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
	server { listen `+addr+`; return 200 nginx; }
}`)
	if got := get(t, "http://"+addr+"/"); got != "nginx" {
		t.Errorf("got %q", got)
	}
	p.Stop()
	if code := p.ExitCode(); code != 0 {
		t.Errorf("exit code = %d", code)
	}
}
