// A key becomes a cookie. What an identity provider's way back could not do stands after the # of the address.

const form = document.getElementById("login");
const key = document.getElementById("key");
const problem = document.getElementById("problem");

if (location.hash) {
  try {
    problem.textContent = decodeURIComponent(location.hash.slice(1));
  } catch {
    problem.textContent = "The log-in failed.";
  }
  history.replaceState(null, "", location.pathname);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  problem.textContent = "";
  try {
    const response = await fetch("/v1/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ key: key.value }),
    });
    if (response.ok) {
      location.replace("/");
      return;
    }
    const said = await response.json();
    problem.textContent = `${said.detail}. ${said.hint}`;
  } catch {
    problem.textContent = "The server does not answer.";
  }
});
