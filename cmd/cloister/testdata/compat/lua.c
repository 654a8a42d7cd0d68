// lua.c is Debian's Lua library with a door: it runs the script that it is given, with the arguments that follow.
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	lua_State *l = luaL_newstate();

	luaL_openlibs(l);
	lua_newtable(l);
	for (int i = 2; i < argc; i++) {
		lua_pushstring(l, argv[i]);
		lua_rawseti(l, -2, i - 1);
	}
	lua_setglobal(l, "arg");
	if (argc < 2 || luaL_dofile(l, argv[1])) {
		fprintf(stderr, "lua: %s\n", argc < 2 ? "no script" : lua_tostring(l, -1));
		return 1;
	}
	lua_close(l);
	return 0;
}
